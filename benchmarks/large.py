"""What large messages cost, and what they cost the others: tensors of 1 MB and 10 MB beside small ones, on one server.

A caller asks for each size alone, one call at a time; then small calls go on while another process sends 10 MB after 10 MB. The
members sum up a part of their tensor, and every answer is checked. A bare gRPC server that looks at nothing is asked the same in
turn: its figures are what gRPC takes by itself.

    python -m benchmarks.large --result benchmarks/results/large-cpu.json
"""

import os
import statistics
import struct
import tempfile
import time
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import typer
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.bare import REPLY
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import Unary, run_loop
from benchmarks.peers.contenders import CONTENDERS, TWINFER, Contender, answering
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb

SIZES = {"small": 1_000, "megabyte": 1_000_000, "ten": 10_000_000}
"""Bytes of each member's input."""
MARGIN_SECONDS = 0.5
"""By which the stream of large calls is there before the small ones, and after them."""
NICER = 10
STEP = 999
"""Every so many bytes the members look at one: it is the messages' way that is measured."""
COLUMNS: Columns = {
    "server": ("server", ""), **{name: (f"p50 ms of {size:,} bytes", ".2f") for name, size in SIZES.items()},
    "p99_ms": ("p99 ms of small ones", ".2f"), "p99_beside_ms": ("beside large ones", ".2f"), "ratio": ("ratio", ".2f"),
}  # fmt: skip


class Sum(nn.Module):
    """uint8 [n, bytes] to the sum of some of each sample's, float32 [n, 1]."""

    def forward(self, values: Tensor) -> Tensor:
        """Sum up, exactly: whole numbers below 2 ** 24."""
        return values[:, ::STEP].sum(1, keepdim=True).float()


class Large(Unary):
    """Calls of `Infer` with input for one member."""

    def __init__(self, name: str) -> None:
        """Serialize the message."""
        values = (np.arange(SIZES[name]) % 2).astype(np.uint8)
        self.messages = [make_request({name: values}).SerializeToString()]
        self._right = float(values[::STEP].sum())

    def check(self, number: int, reply: bytes) -> int | None:
        if reply != REPLY:  # the bare server's
            [found] = struct.unpack("<f", pb.InferResponse.FromString(reply).prediction.tensor.data)
            if found != self._right:
                raise RuntimeError(f"found {found}; right: {self._right}")
        return None


def write_folder(folder: Path) -> Path:
    """Write an ensemble with a member for each size, of which a request asks one."""
    lines = ['name = "large"', "version = 1", 'task = "tensor"', 'policy = "best_effort"']
    for name, size in SIZES.items():
        lines += [f"[members.{name}]", 'model = "python:benchmarks.large:Sum"', 'output = { kind = "tensor" }']
        lines += [f"[members.{name}.input.{name}]", 'kind = "tensor"', 'dtype = "uint8"', f"shape = [{size}]"]
    lines += ["[fusion]", 'method = "weighted_mean"', "[batching]", "max_batch_size = 4"]
    (folder / "ensemble.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def ask_nicely(address: str, pid: int, seconds: float) -> None:
    """Send 10 MB after 10 MB for so long. What asks for little on the same core goes first."""
    os.setpriority(os.PRIO_PROCESS, 0, NICER)
    run_loop(partial(Large, "ten"), address, pid, 1, seconds)


def run_round(address: str, pid: int, one: Executor, other: Executor, seconds: float) -> dict[str, float]:
    """Measure one round: `one` process asks for each size, then for little while the `other` asks for the largest."""
    alone = {name: one.submit(run_loop, partial(Large, name), address, pid, 1, seconds).result() for name in SIZES}
    large = other.submit(ask_nicely, address, pid, seconds + 2 * MARGIN_SECONDS)
    time.sleep(MARGIN_SECONDS)
    beside = one.submit(run_loop, partial(Large, "small"), address, pid, 1, seconds).result()
    large.result()
    return {name: each.p50_ms for name, each in alone.items()} | {
        "p99_ms": alone["small"].p99_ms, "p99_beside_ms": beside.p99_ms, "ratio": beside.p99_ms / alone["small"].p99_ms,
    }  # fmt: skip


def main(
    result: Result = None,
    seconds: Seconds = 3.0,
    rounds: Rounds = 5,
    pinned: Pinned = None,
) -> None:
    """Measure large messages."""
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one, other = (stack.enter_context(harness.worker(cores.load)) for _ in range(2))
        contenders = [each for each in CONTENDERS if each.name == TWINFER]
        contenders.append(Contender("bare gRPC", (), ("benchmarks/bare.py", "{port}")))
        folder, make = write_folder(root), partial(Large, "small")
        running = [stack.enter_context(answering(each, "", folder, cores.server, one, make)) for each in contenders]
        servers = {server.contender.name: (server.address, server.pid) for server in running}
        harness.pin(cores.load)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, (address, pid) in servers.items():
                found[name].append(run_round(address, pid, one, other, seconds))
    figures: list[Figure] = [
        {"server": name, **{key: round(statistics.median(each[key] for each in own), 3) for key in own[0]}}
        for name, own in found.items()
    ]
    table = harness.tabulate(figures, COLUMNS)
    setup: dict[str, object] = {"rounds": rounds, "seconds": seconds, "sizes": SIZES, "cores": str(cores)}
    harness.report("benchmarks.large", machine, setup, figures, [table], result)


if __name__ == "__main__":
    typer.run(main)

"""What large messages cost, and what they cost the others: tensors of 1 MB and 10 MB beside small ones, on one server.

A caller asks for each size alone, one call at a time; then small calls go on while another process sends 10 MB after 10 MB. The
members sum up a part of their tensor, and every answer is checked. A bare gRPC server that looks at nothing is asked the same in
turn: its figures are what gRPC takes by itself.

    python -m benchmarks.large --json benchmarks/results/large-cpu.json
"""

import os
import statistics
import struct
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.bare import REPLY, serving_bare
from benchmarks.harness import Cores, Server, describe_machine, describe_versions, pin, serving, worker, write_result
from benchmarks.load import METHOD, TIMEOUT_SECONDS
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb

SIZES = {"small": 1_000, "megabyte": 1_000_000, "ten": 10_000_000}
"""Bytes of each member's input."""
WARM_CALLS = 5
MARGIN_SECONDS = 0.5
"""By which the stream is there before the small calls, and after them."""
NICER = 10
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


STEP = 999
"""Every so many bytes the members look at one: it is the messages' way that is measured."""


class Sum(nn.Module):
    """uint8 [n, bytes] to the sum of some of each row's, float32 [n, 1]."""

    def forward(self, values: Tensor) -> Tensor:
        """Sum up, exactly: whole numbers below 2 ** 24."""
        return values[:, ::STEP].sum(1, keepdim=True).float()


@dataclass(frozen=True, slots=True)
class Found:
    """Latencies of one round, in milliseconds: of each size alone, and of small calls without and beside a stream of 10 MB."""

    server: str
    p50_ms: dict[str, float]
    small_p99_ms: float
    small_p99_beside_ms: float
    large_calls_beside: int


def write_folder(folder: Path) -> Path:
    """Write an ensemble with a member for each size, of which a request asks one."""
    lines = ['name = "large"', "version = 1", 'task = "tensor"', 'policy = "best_effort"']
    for name, size in SIZES.items():
        lines += [f"[members.{name}]", 'model = "python:benchmarks.large:Sum"', 'output = { kind = "tensor" }']
        lines += [f"[members.{name}.input.{name}]", 'kind = "tensor"', 'dtype = "uint8"', f"shape = [{size}]"]
    lines += ["[fusion]", 'method = "weighted_mean"', "[batching]", "max_batch_size = 4"]
    (folder / "ensemble.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_message(name: str) -> tuple[bytes, float]:
    """Make a request for one member, and its answer."""
    values = (np.arange(SIZES[name]) % 2).astype(np.uint8)
    return make_request({name: values}).SerializeToString(), float(values[::STEP].sum())


def ask(server: Server, name: str, seconds: float) -> list[float]:
    """Ask one call after the other for so long, at least a few times, in the process that asks; gives each one's milliseconds."""
    return uvloop.run(_ask_for(server, make_message(name), seconds))


def stream(server: Server, seconds: float) -> int:
    """Send 10 MB after 10 MB for so long; gives how many. Whoever asks for little on the same core goes first."""
    os.setpriority(os.PRIO_PROCESS, 0, NICER)
    return len(ask(server, "ten", seconds))


async def _ask_for(server: Server, message: tuple[bytes, float], seconds: float) -> list[float]:
    async with grpc.aio.insecure_channel(server.address, options=(("grpc.max_send_message_length", -1),)) as channel:
        call: Call = channel.unary_unary(METHOD)
        for _ in range(WARM_CALLS):
            await call(message[0], timeout=TIMEOUT_SECONDS)
        found: list[float] = []
        replies: list[bytes] = []
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends or len(found) < WARM_CALLS:
            replies.append(await call(message[0], timeout=TIMEOUT_SECONDS))
            found.append((time.perf_counter() - began) * 1e3)
    for reply in replies:
        _check(reply, message[1])
    return found


def _check(reply: bytes, right: float) -> None:
    """Raise RuntimeError for a wrong answer; the bare server gives none."""
    if reply == REPLY:
        return
    [found] = struct.unpack("<f", pb.InferResponse.FromString(reply).prediction.tensor.data)
    if found != right:
        raise RuntimeError(f"found {found}; right: {right}")


def run_round(name: str, server: Server, one: Executor, other: Executor, seconds: float) -> Found:
    """Measure one round: `one` process asks, and the `other` sends the stream."""
    alone = {size: one.submit(ask, server, size, seconds).result() for size in SIZES}
    large = other.submit(stream, server, seconds + 2 * MARGIN_SECONDS)
    time.sleep(MARGIN_SECONDS)
    beside = one.submit(ask, server, "small", seconds).result()
    return Found(
        server=name,
        p50_ms={size: statistics.median(found) for size, found in alone.items()},
        small_p99_ms=_p99(alone["small"]),
        small_p99_beside_ms=_p99(beside),
        large_calls_beside=large.result(),
    )


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def show(found: Sequence[Found], console: Console) -> None:
    """Print the medians of each server's rounds."""
    table = Table("server", *(f"p50 ms of {size:,} bytes" for size in SIZES.values()), box=None, header_style="dim")
    for name in dict.fromkeys(each.server for each in found):
        own = [each for each in found if each.server == name]
        table.add_row(name, *(f"{statistics.median(each.p50_ms[size] for each in own):.2f}" for size in SIZES))
        alone = statistics.median(each.small_p99_ms for each in own)
        beside = statistics.median(each.small_p99_beside_ms for each in own)
        ratio = statistics.median(each.small_p99_beside_ms / each.small_p99_ms for each in own)
        console.print(f"{name}: p99 of small calls {alone:.2f} ms alone, {beside:.2f} ms beside the stream; ratio {ratio:.2f}")
    console.print(table)


def main(
    json: Annotated[Path | None, typer.Option(help="Where to write the result.")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long each part of a round takes.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds; the medians count.")] = 5,
    pinned: Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")] = None,
) -> None:
    """Measure large messages."""
    machine, cores, console = describe_machine(), Cores.choose(pinned), Console(highlight=False)
    console.print(f"{machine['cpu']}; {', '.join(map(' '.join, describe_versions().items()))}; {cores}")
    arguments = ["--trust-code", "--set", "cache_dir="]
    with ExitStack() as stack:
        folder = write_folder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        one, other = (stack.enter_context(worker(cores.load)) for _ in range(2))
        servers = {
            "twinfer": stack.enter_context(serving(folder, cores.server, arguments)),
            "bare gRPC": stack.enter_context(serving_bare(cores.server)),
        }
        pin(cores.load)
        for each in (one, other):
            each.submit(ask, servers["bare gRPC"], "small", 0.0).result()  # starts the process
        found = [run_round(name, server, one, other, seconds) for _ in range(rounds) for name, server in servers.items()]
    show(found, console)
    if json:
        setup: dict[str, object] = {"rounds": rounds, "seconds": seconds, "sizes": SIZES}
        write_result(json, "benchmarks.large", machine, setup, [asdict(each) for each in found])


if __name__ == "__main__":
    typer.run(main)

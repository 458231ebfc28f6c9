"""What large messages cost, and what they cost the others: tensors of 1 MB and 10 MB beside small ones, on one server.

A caller asks for each size alone, one call at a time; then small calls go on while another connection sends 10 MB after 10 MB.
The members sum up a part of their tensor, and every answer is checked.

    python -m benchmarks.large --json benchmarks/results/large-cpu.json
"""

import asyncio
import statistics
import struct
import tempfile
import time
from collections.abc import Sequence
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

from benchmarks.harness import Cores, Server, describe_machine, describe_versions, pin, serving, worker, write_result
from benchmarks.load import METHOD, TIMEOUT_SECONDS
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb

SIZES = {"small": 1_000, "megabyte": 1_000_000, "ten": 10_000_000}
"""Bytes of each member's input."""
WARM_CALLS = 5
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
    lines += ["[fusion]", 'method = "weighted_mean"', "[batching]", "max_rows = 4"]
    (folder / "ensemble.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_message(name: str) -> tuple[bytes, float]:
    """Make a request for one member, and its answer."""
    values = (np.arange(SIZES[name]) % 2).astype(np.uint8)
    return make_request({name: values}).SerializeToString(), float(values[::STEP].sum())


async def _ask(call: Call, message: tuple[bytes, float]) -> float:
    """Ask and check; give the milliseconds."""
    began = time.perf_counter()
    reply = await call(message[0], timeout=TIMEOUT_SECONDS)
    milliseconds = (time.perf_counter() - began) * 1e3
    [found] = struct.unpack("<f", pb.InferResponse.FromString(reply).prediction.tensor.data)
    if found != message[1]:
        raise RuntimeError(f"found {found}; right: {message[1]}")
    return milliseconds


async def _ask_for(call: Call, message: tuple[bytes, float], seconds: float) -> list[float]:
    """Ask one call after the other for so long; at least a few times."""
    for _ in range(WARM_CALLS):
        await _ask(call, message)
    found: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(found) < WARM_CALLS:
        found.append(await _ask(call, message))
    return found


def run_round(server: Server, seconds: float) -> Found:
    """Measure one round, in the process that asks."""
    return uvloop.run(_run_round(server, seconds))


async def _run_round(server: Server, seconds: float) -> Found:
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))  # a connection for each channel
    channels = [grpc.aio.insecure_channel(server.address, options=options) for _ in range(2)]
    call: Call = channels[0].unary_unary(METHOD)
    other: Call = channels[1].unary_unary(METHOD)
    messages = {name: make_message(name) for name in SIZES}
    alone = {name: await _ask_for(call, message, seconds) for name, message in messages.items()}
    stream = asyncio.create_task(_ask_for(other, messages["ten"], seconds))
    beside = []
    while not stream.done():
        beside.append(await _ask(call, messages["small"]))
    large = await stream
    for channel in channels:
        await channel.close()
    return Found(
        p50_ms={name: statistics.median(found) for name, found in alone.items()},
        small_p99_ms=_p99(alone["small"]),
        small_p99_beside_ms=_p99(beside),
        large_calls_beside=len(large),
    )


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def main(
    json: Annotated[Path | None, typer.Option(help="Where to write the result.")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long each part of a round takes.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds; the medians count.")] = 5,
    workers: Annotated[int, typer.Option(min=0, help="Front processes.")] = 0,
    pinned: Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")] = None,
) -> None:
    """Measure large messages."""
    machine, cores, console = describe_machine(), Cores.choose(pinned), Console(highlight=False)
    console.print(f"{machine['cpu']}; {', '.join(map(' '.join, describe_versions().items()))}; {cores}")
    arguments = ["--trust-code", "--set", f"workers={workers}", "--set", "cache_dir="]
    with ExitStack() as stack:
        folder = write_folder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        load = stack.enter_context(worker(cores.load))
        server = stack.enter_context(serving(folder, cores.server, arguments))
        pin(cores.load)
        found = [load.submit(run_round, server, seconds).result() for _ in range(rounds)]
    p50 = {name: statistics.median(each.p50_ms[name] for each in found) for name in SIZES}
    table = Table("size", "p50 ms", "added ms", box=None, header_style="dim")
    for name, milliseconds in p50.items():
        table.add_row(f"{SIZES[name]:,} bytes", f"{milliseconds:.2f}", f"{milliseconds - p50['small']:.2f}")
    console.print(table)
    alone = statistics.median(each.small_p99_ms for each in found)
    beside = statistics.median(each.small_p99_beside_ms for each in found)
    ratio = statistics.median(each.small_p99_beside_ms / each.small_p99_ms for each in found)
    console.print(f"p99 of small calls: {alone:.2f} ms alone, {beside:.2f} ms beside a stream of 10 MB; the ratio is {ratio:.2f}")
    if json:
        setup: dict[str, object] = {"rounds": rounds, "seconds": seconds, "workers": workers, "sizes": SIZES}
        write_result(json, "benchmarks.large", machine, setup, [asdict(each) for each in found])


if __name__ == "__main__":
    typer.run(main)

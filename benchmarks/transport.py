"""What it takes to bring a message to a handler and its answer back: twinfer's own server beside grpc.aio's, without a service.

    python -m benchmarks.transport --json benchmarks/results/transport-cpu.json

Each server has one core, the load another. Runs are interleaved; figures are medians, ratios medians of the rounds' pairs with
grpc.aio on uvloop. The load is Python, too, and mostly what limits the faster server: the CPU times tell more.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.bare import SERVICE, STREAM, UNARY, Kind, serving_bare
from benchmarks.harness import Cores, Server, cpu_seconds, describe_machine, describe_versions, pin, worker, write_result

WARM_SECONDS = 0.3
SIZES = (100, 12_600)
"""Bytes of a message: next to nothing, and a small picture with 32 token ids."""
LEVELS = (1, 32, 64)
SERVERS = {
    "twinfer": (Kind.OWN, "uvloop"),
    "grpc.aio on uvloop": (Kind.AIO, "uvloop"),
    "grpc.aio on asyncio": (Kind.AIO, "asyncio"),
}
REFERENCE = "grpc.aio on uvloop"
Ask = Callable[[grpc.aio.Channel, bytes, int, list[float], asyncio.Event], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Run:
    """One run: messages per second, their median latency, and the server's CPU time for each."""

    server: str
    way: str
    size_bytes: int
    in_flight: int
    per_second: float
    p50_ms: float
    server_cpu_us: float

    @property
    def point(self) -> tuple[str, int, int]:
        """What was measured, whoever served."""
        return self.way, self.size_bytes, self.in_flight


async def _call(channel: grpc.aio.Channel, message: bytes, in_flight: int, latencies: list[float], over: asyncio.Event) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{UNARY}")

    async def caller() -> None:
        while not over.is_set():
            began = time.perf_counter()
            await call(message, timeout=30.0)
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def _stream(channel: grpc.aio.Channel, message: bytes, in_flight: int, latencies: list[float], over: asyncio.Event) -> None:
    stream: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{STREAM}")()
    sent = [time.perf_counter()] * in_flight
    for _ in range(in_flight):
        await stream.write(message)
    while not over.is_set():
        await stream.read()
        latencies.append(time.perf_counter() - sent.pop(0))
        sent.append(time.perf_counter())
        await stream.write(message)
    await stream.done_writing()
    while await stream.read() is not grpc.aio.EOF:
        pass


WAYS: dict[str, Ask] = {"calls": _call, "a stream": _stream}


def run(name: str, server: Server, way: str, size: int, in_flight: int, seconds: float) -> Run:
    """Keep so many messages under way for so long, in the process that asks."""
    return uvloop.run(_run(name, server, way, size, in_flight, seconds))


async def _run(name: str, server: Server, way: str, size: int, in_flight: int, seconds: float) -> Run:
    latencies: list[float] = []
    over = asyncio.Event()
    async with grpc.aio.insecure_channel(server.address) as channel:
        asking = asyncio.create_task(WAYS[way](channel, bytes(size), in_flight, latencies, over))
        await asyncio.wait({asking}, timeout=WARM_SECONDS)
        first, cpu_before, began = len(latencies), cpu_seconds(server.pid), time.perf_counter()
        await asyncio.wait({asking}, timeout=seconds)
        taken, cpu_after, ended = latencies[first:], cpu_seconds(server.pid), time.perf_counter()
        over.set()
        await asking
    cpu_us = (cpu_after - cpu_before) / len(taken) * 1e6
    return Run(name, way, size, in_flight, len(taken) / (ended - began), statistics.median(taken) * 1e3, cpu_us)


def summarise(runs: list[Run]) -> list[dict[str, object]]:
    """Give the medians of each point and server, and the ratio of its messages per second to the reference's."""
    figures: list[dict[str, object]] = []
    for point in dict.fromkeys(each.point for each in runs):
        found = {name: [each for each in runs if each.point == point and each.server == name] for name in SERVERS}
        for name, own in found.items():
            pairs = zip(own, found[REFERENCE], strict=True)
            figures.append({
                "way": point[0], "size_bytes": point[1], "in_flight": point[2], "server": name,
                "per_second": round(statistics.median(each.per_second for each in own), 1),
                "p50_ms": round(statistics.median(each.p50_ms for each in own), 3),
                "server_cpu_us": round(statistics.median(each.server_cpu_us for each in own), 1),
                "ratio": round(statistics.median(one.per_second / other.per_second for one, other in pairs), 3),
            })  # fmt: skip
    return figures


def main(
    json: Annotated[Path | None, typer.Option(help="Where to write the result.")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long one run measures.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many runs of each; the median counts.")] = 5,
    pinned: Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")] = None,
) -> None:
    """Measure the servers."""
    machine, cores, console = describe_machine(), Cores.choose(pinned), Console(highlight=False)
    console.print(f"{machine['cpu']}; {', '.join(map(' '.join, describe_versions().items()))}; {cores}")
    with ExitStack() as stack:
        loader = stack.enter_context(worker(cores.load))
        servers = {name: stack.enter_context(serving_bare(cores.server, *which)) for name, which in SERVERS.items()}
        pin(cores.load)
        runs = [
            loader.submit(run, name, server, way, size, in_flight, seconds).result()
            for _ in range(rounds)
            for way in WAYS
            for size in SIZES
            for in_flight in LEVELS
            for name, server in servers.items()
        ]
    figures = summarise(runs)
    table = Table(*figures[0], box=None, header_style="dim", padding=(0, 1, 0, 0))
    for figure in figures:
        table.add_row(*map(str, figure.values()))
    console.print(table)
    if json:
        setup: dict[str, object] = {"rounds": rounds, "seconds": seconds, "loop": "closed", "runs": [asdict(each) for each in runs]}
        write_result(json, "benchmarks.transport", machine, setup, figures)


if __name__ == "__main__":
    typer.run(main)

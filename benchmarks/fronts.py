"""What front processes gain: a closed loop of calls against models that do nothing, with 0, 1, 2, ... of them.

python -m benchmarks.fronts --workers 0,1,2 --loaders 2 --seconds 2 --rounds 3

The load generator takes about as much as a front does, so the gain shows where there are cores for all: one for the device process,
one for each front and one for each loader. The CPU times per request count on any machine.
"""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import psutil
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.harness import cpu_seconds, describe_machine, describe_versions, serving
from benchmarks.load import METHOD, Call
from twinfer import make_request

CHANNELS = 8
"""Connections of each loader: the kernel deals them out among the fronts."""
WARM_SECONDS = 0.5
TOML = """
name = "nothing"
version = 1
task = "classification"
plan = "serial"
[members.left]
model = "python:models.py:Nothing"
[members.left.input.x]
kind = "tensor"
dtype = "float32"
shape = [4]
[members.right]
model = "python:models.py:Nothing"
[members.right.input.x]
kind = "tensor"
dtype = "float32"
shape = [4]
[fusion]
method = "weighted_mean"
"""
MODELS = """
import torch


class Nothing(torch.nn.Module):
    def forward(self, x):
        return x
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: requests per second, and CPU microseconds per request; `own_mb` is what a front has for itself, in 10^6 bytes."""

    workers: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    device_us: float
    fronts_us: float
    own_mb: float


def keep_asking(address: str, in_flight: int, seconds: float) -> list[float]:
    """Keep so many calls under way, in a process of its own; gives each one's time, in seconds."""
    return uvloop.run(_keep_asking(address, in_flight, seconds))


async def _keep_asking(address: str, in_flight: int, seconds: float) -> list[float]:
    message = make_request({"x": np.arange(4, dtype=np.float32)}).SerializeToString()
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(CHANNELS)]
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def caller(channel: grpc.aio.Channel) -> None:
        call: Call = channel.unary_unary(METHOD)
        while (began := time.perf_counter()) < until:
            await call(message, timeout=30)
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(caller(channel) for channel, _ in zip(itertools.cycle(channels), range(in_flight), strict=False)))
    for channel in channels:
        await channel.close()
    return taken


def measure(folder: Path, workers: int, loaders: ProcessPoolExecutor, count: int, in_flight: int, seconds: float) -> Run:
    """Serve `folder` and ask it with `count` loaders, `in_flight` calls in all."""

    def ask(seconds: float) -> list[float]:
        share = max(1, in_flight // count)
        asked = [loaders.submit(keep_asking, server.address, share, seconds) for _ in range(count)]
        return [taken for answers in asked for taken in answers.result()]

    with serving(folder, frozenset(), ("--trust-code", "--set", "cache_dir=", "--workers", str(workers))) as server:
        device = psutil.Process(server.pid)
        fronts = [front for nursery in device.children() for front in nursery.children()]
        ask(WARM_SECONDS)
        before, began = [cpu_seconds(process.pid) for process in (device, *fronts)], time.perf_counter()
        taken = sorted(ask(seconds))
        lasted = time.perf_counter() - began
        used = [cpu_seconds(process.pid) - past for process, past in zip((device, *fronts), before, strict=True)]
        own = [front.memory_full_info().uss for front in fronts]
    per_request = 1e6 / len(taken)
    return Run(
        workers=workers,
        requests_per_second=len(taken) / lasted,
        p50_ms=statistics.median(taken) * 1e3,
        p99_ms=taken[int(0.99 * len(taken))] * 1e3,
        device_us=used[0] * per_request,
        fronts_us=sum(used[1:]) * per_request,
        own_mb=max(own, default=0) / 1e6,
    )


def show(runs: Sequence[Run], console: Console) -> None:
    """Print the medians of the runs of each number of workers."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading in ("workers", "requests/s", "p50 ms", "p99 ms", "device CPU us", "fronts' CPU us", "a front's own MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for workers, group in itertools.groupby(sorted(runs, key=lambda run: run.workers), key=lambda run: run.workers):
        same = list(group)
        figures = [
            statistics.median(getattr(run, name) for run in same)
            for name in ("requests_per_second", "p50_ms", "p99_ms", "device_us", "fronts_us", "own_mb")
        ]
        forms = (",.0f", ".2f", ".2f", ".0f", ".0f", ".0f")
        table.add_row(str(workers), *(format(figure, form) for figure, form in zip(figures, forms, strict=True)))
    console.print(table)


def main(
    workers: Annotated[str, typer.Option(help="Numbers of front processes, by comma.")] = "0,1,2",
    loaders: Annotated[int, typer.Option(min=1, help="Processes that make the load.")] = 1,
    in_flight: Annotated[int, typer.Option(min=1, help="Calls in flight, over all of them.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long one run measures.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many runs of each; the median counts.")] = 3,
) -> None:
    """Measure each number of front processes in turn."""
    console, machine = Console(highlight=False), describe_machine()
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {', '.join(map(' '.join, describe_versions().items()))}")
    levels = [int(level) for level in workers.split(",")]
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(loaders, mp_context=get_context("spawn")) as pool:
        folder = Path(place)
        (folder / "ensemble.toml").write_text(TOML, encoding="utf-8")
        (folder / "models.py").write_text(MODELS, encoding="utf-8")
        runs = [measure(folder, level, pool, loaders, in_flight, seconds) for _ in range(rounds) for level in levels]
    show(runs, console)


if __name__ == "__main__":
    typer.run(main)

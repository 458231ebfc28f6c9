"""All that only a GPU can show, in one run of at most nine minutes: the GPU's tests, overlap, launch cost, streams, memory.

Figures are written after every pair of models, so that a run that is cut short has given what it found. With --small it runs on a
CPU too, in some seconds, so that it does not rot.

    python -m benchmarks.gpu --result benchmarks/results/gpu.json
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from benchmarks import harness
from benchmarks.harness import ROOT, Columns, DeviceName, Figure, Result
from benchmarks.ours import Ours
from benchmarks.overlap import PAIRS, SIZES, ByHand, lay_out, load, measure

BUDGET_SECONDS = 530.0
TEST_SECONDS = 200.0
BATCHES = 10_000
COUNTERS = ("allocation.all.allocated", "segment.all.allocated", "reserved_bytes.all.current")
"""Of `torch.cuda.memory_stats`: pieces that torch gave out, pieces that it asked the driver for, bytes that it holds."""
TEST_COLUMNS: Columns = {"outcome": ("tests/gpu", ""), "seconds": ("seconds", ".0f")}
STREAM_COLUMNS: Columns = {
    "pair": ("pair", ""), "batch": ("batch", "d"), "streams": ("members' streams", ""), "join_ms": ("fork to join, ms", ".3f"),
    "first_ms": ("first member, ms", ".3f"), "second_ms": ("second member, ms", ".3f"), "why_not": ("not measured because", ""),
}  # fmt: skip
MEMORY_COLUMNS: Columns = {
    "pair": ("pair", ""), "warm_up_seconds": ("warm-up, s", ".1f"), "allocated_mib": ("allocated, MiB", ".0f"),
    "reserved_mib": ("reserved, MiB", ".0f"), "used_mib": ("used on the device, MiB", ".0f"), "graphs": ("CUDA graphs", ""),
}  # fmt: skip
STEADY_COLUMNS: Columns = {
    "pair": ("pair", ""), "batches": ("batches of one", ",d"), "per_second": ("batches/s", ",.0f"),
    **{counter: (counter, "+d") for counter in COUNTERS}, "rss_mib": ("resident, MiB", "+.1f"),
}  # fmt: skip
MakeStream = Callable[[], "torch.cuda.Stream"]


def describe_gpu(device: torch.device) -> dict[str, object]:
    """Return the card, its driver, and what torch was built with."""
    if device.type != "cuda":
        return {"device": str(device)}
    driver = "unknown"
    with suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name, "device_gib": round(card.total_memory / 2**30, 1), "multiprocessors": card.multi_processor_count,
        "driver": driver, "cuda": torch.version.cuda,
    }  # fmt: skip


def run_tests(is_small: bool) -> Figure:
    """Run the tests that need a GPU; where the run is small, only collect them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        *(["--collect-only"] if is_small else []),
    ]
    began, code = time.monotonic(), -1
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
        code, lines = done.returncode, (done.stdout + done.stderr).splitlines()
    except subprocess.TimeoutExpired as error:
        lines = [*(error.stdout or b"").decode().splitlines(), f"cut off after {TEST_SECONDS:.0f} s"]
    said = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-20:]
    outcome = lines[-1].strip("= ") if lines else "nothing"
    return {"outcome": outcome, "exit_code": code, "seconds": time.monotonic() - began, "said": said if code else []}


def list_streams(device: torch.device) -> dict[str, MakeStream | str]:
    """Return the kinds of streams that members may run on: what makes one for a member after the other, or why there are none."""
    if device.type != "cuda":
        return dict.fromkeys(("plain", "first one with priority", "green contexts"), "the device is a CPU")
    priorities = cycle((-1, 0))
    kinds: dict[str, MakeStream | str] = {
        "plain": lambda: torch.cuda.Stream(device),
        "first one with priority": lambda: torch.cuda.Stream(device, priority=next(priorities)),
    }
    try:
        kinds["green contexts"] = _find_green_contexts(device)
    except Exception as error:  # a beta feature: whatever it says belongs into the report
        kinds["green contexts"] = f"{type(error).__name__}: {error}"
    return kinds


def _find_green_contexts(device: torch.device) -> MakeStream:
    """Return what makes streams with hardware queues that no other stream shares (pytorch#176582)."""
    from torch.cuda.green_contexts import GreenContext

    contexts = []  # they must outlive their streams

    def make() -> "torch.cuda.Stream":
        contexts.append(GreenContext.create(workqueue_scope="balanced", device_id=device.index or 0))
        stream: torch.cuda.Stream = contexts[-1].Stream()  # type: ignore[attr-defined]
        return stream

    make()
    return make


def compare_streams(pair: str, ours: Ours, size: int, seconds: float) -> list[Figure]:
    """Measure batches with the members on each kind of stream, in blocks that take turns."""
    found: dict[str, list[list[float]]] = {}
    kinds = list_streams(ours.device.torch_device)
    makers = {kind: make for kind, make in kinds.items() if not isinstance(make, str)}
    for _ in range(3):
        for kind, make in makers.items():
            ours.use_streams(make)
            for _ in range(5):
                ours.run(size, "streams")
            ends = time.perf_counter() + seconds / 3 / len(makers)
            while time.perf_counter() < ends or not found.get(kind):
                timed = ours.run(size, "streams")
                found.setdefault(kind, []).append([timed.join, *timed.members.values()])
    figures: list[Figure] = []
    for kind, how in kinds.items():
        medians = torch.tensor(found[kind]).median(dim=0).values.mul(1e3).tolist() if kind in found else [None] * 3
        times = dict(zip(("join_ms", "first_ms", "second_ms"), medians, strict=True))
        figures.append({"pair": pair, "batch": size, "streams": kind, **times, "why_not": how if isinstance(how, str) else None})
    return figures


def read_memory(pair: str, ours: Ours) -> Figure:
    """Return what a warm ensemble takes on the device."""
    found: list[float | None] = [None] * 3
    if ours.device.torch_device.type == "cuda":
        free, total = torch.cuda.mem_get_info(ours.device.torch_device)
        found = [size / 2**20 for size in (torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total - free)]
    return {
        "pair": pair, "warm_up_seconds": ours.warm_up_seconds,
        "allocated_mib": found[0], "reserved_mib": found[1], "used_mib": found[2],
        "graphs": ", ".join(f"{name}: {answer}" for name, answer in ours.graphs.items()),
        "members": {name: asdict(memory) for name, memory in ours.ensemble.memory.items()},
    }  # fmt: skip


def run_steadily(pair: str, ours: Ours, batches: int, seconds: float) -> Figure:
    """Run batch after batch and count what is allocated meanwhile; fewer batches where the time is up."""

    def read() -> dict[str, int]:
        stats = torch.cuda.memory_stats() if ours.device.torch_device.type == "cuda" else {}
        return {counter: int(stats.get(counter, 0)) for counter in COUNTERS} | {"rss": psutil.Process().memory_info().rss}

    for _ in range(20):
        ours.run(1, "streams")
    before, began, done = read(), time.perf_counter(), 0
    while done < batches and time.perf_counter() - began < seconds:
        ours.run(1, "streams")
        done += 1
    rate, after = done / (time.perf_counter() - began), read()
    grown = {key: after[key] - before[key] for key in after}
    return {"pair": pair, "batches": done, "per_second": rate, **grown, "rss_mib": grown["rss"] / 2**20}


def main(
    device: DeviceName = "auto",
    is_small: Annotated[bool, typer.Option("--small", help="Small models, few rounds: some seconds, on a CPU too.")] = False,
    result: Result = None,
) -> None:
    """Measure all that only a GPU can show."""
    began = time.monotonic()
    pairs, seconds, batches = ("launch-bound", "base"), 4.0, BATCHES
    sizes: Sequence[int] = SIZES
    if is_small:
        pairs, sizes, seconds, batches = ("launch-bound", "tiny"), (1, 4), 0.05, 50
    machine, tests = harness.describe_machine(), run_tests(is_small)
    overlap: list[Figure] = []
    streams: list[Figure] = []
    memory: list[Figure] = []
    steady: list[Figure] = []

    def seconds_left() -> float:
        return BUDGET_SECONDS - (time.monotonic() - began)

    with tempfile.TemporaryDirectory() as root:
        for name in pairs:
            if seconds_left() < 60:
                print(f"{name}: left out, the time is up")
                continue
            ours = load(PAIRS[name], Path(root) / name, device, sizes)
            by_hand = ByHand(PAIRS[name], ours.device.torch_device)
            machine |= describe_gpu(ours.device.torch_device)
            each = partial(min, seconds)
            memory.append(read_memory(name, ours))
            overlap += [measure(PAIRS[name], size, ours, by_hand, each(seconds_left() / 20)) for size in sizes]
            steady.append(run_steadily(name, ours, batches, min(60.0, seconds_left() / 4)))
            for size in (sizes[0], sizes[-1]):
                streams += compare_streams(name, ours, size, each(seconds_left() / 20))
            ours.close()
            by_hand.close()
            parts = {"tests": [tests], "overlap": overlap, "streams": streams, "memory": memory, "steady": steady}
            columns = (STREAM_COLUMNS, MEMORY_COLUMNS, STEADY_COLUMNS)
            tables = [harness.tabulate(figures, how) for figures, how in zip((streams, memory, steady), columns, strict=True)]
            figures = [{"part": part, **figure} for part, found in parts.items() for figure in found]
            setup: dict[str, object] = {"seconds_a_point": seconds, "seconds_taken": round(time.monotonic() - began, 1)}
            tables = [harness.tabulate([tests], TEST_COLUMNS), lay_out(overlap), *tables]
            harness.report("benchmarks.gpu", machine, setup, figures, tables, result)
    if tests["exit_code"]:
        print("\n".join(map(str, tests["said"] if isinstance(tests["said"], list) else ())))
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

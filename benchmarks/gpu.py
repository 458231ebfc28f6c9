"""All that only a GPU can show, in one run of at most nine minutes: the GPU's tests, overlap, launch cost, streams, memory.

    python -m benchmarks.gpu --result benchmarks/results/gpu.json      # with --small on a CPU too, in seconds, so that it does not rot

Figures are written after every part, so that a run that is cut short has given what it found.
"""

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from benchmarks.harness import ROOT, Columns, Figure, describe_machine, make_console, show, tabulate, write_result
from benchmarks.ours import Ours
from benchmarks.overlap import PAIRS, SIZES, ByHand, lay_out, load, measure
from twinfer_server.device import Execution

BUDGET_SECONDS = 530.0
TEST_SECONDS = 200.0
BATCHES = 10_000
COUNTERS = ("allocation.all.allocated", "segment.all.allocated", "reserved_bytes.all.current")
"""Of `torch.cuda.memory_stats`: pieces handed out, pieces asked of the driver, bytes held."""
ON_A_CPU = "the device is a CPU"
STREAM_COLUMNS: Columns = {
    "pair": ("pair", ""), "batch": ("batch", "d"), "streams": ("members' streams", ""), "join_ms": ("fork to join, ms", ".3f"),
    "first_ms": ("first member, ms", ".3f"), "second_ms": ("second member, ms", ".3f"), "note": ("not measured because", ""),
}  # fmt: skip
MEMORY_COLUMNS: Columns = {
    "pair": ("pair", ""), "warm_up_seconds": ("warm-up, s", ".1f"), "allocated_mib": ("allocated, MiB", ".0f"),
    "reserved_mib": ("reserved, MiB", ".0f"), "used_mib": ("used on the device, MiB", ".0f"), "graphs": ("CUDA graphs", ""),
}  # fmt: skip
STEADY_COLUMNS: Columns = {
    "pair": ("pair", ""), "batch": ("batch", "d"), "batches": ("batches", ",d"), "per_second": ("batches/s", ",.0f"),
    **{counter: (counter, "+d") for counter in COUNTERS}, "rss_mib": ("resident, MiB", "+.1f"), "is_flat": ("flat", ""),
}  # fmt: skip


class Report:
    """What has been found so far, and the time that is left."""

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self.began = time.monotonic()
        self.parts: dict[str, list[Figure]] = {}
        self.tables: list[list[list[str]]] = []
        self._path, self._console = path, make_console()
        self._machine = describe_machine() | describe_gpu(device)

    @property
    def seconds_left(self) -> float:
        """What is left of the budget."""
        return BUDGET_SECONDS - (time.monotonic() - self.began)

    def add(self, part: str, figures: list[Figure], table: list[list[str]]) -> None:
        """Print a part and write all that there is."""
        self.parts[part] = figures
        self.tables.append(table)
        show(table, self._console)
        self._console.print(f"[dim]{part}: {self.seconds_left:.0f} s left[/]")
        if self._path:
            everything: list[Figure] = [{"part": part, **figure} for part, figures in self.parts.items() for figure in figures]
            write_result(self._path, "benchmarks.gpu", self._machine, {"budget_seconds": BUDGET_SECONDS}, everything, self.tables)


def describe_gpu(device: torch.device) -> dict[str, object]:
    """Return the card, its driver, and what torch was built with."""
    if device.type != "cuda":
        return {"device": str(device), "torch": torch.__version__}
    driver = "unknown"
    with suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name, "device_gib": round(card.total_memory / 2**30, 1), "multiprocessors": card.multi_processor_count,
        "driver": driver, "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
    }  # fmt: skip


def run_tests(is_small: bool, seconds: float) -> Figure:
    """Run the tests that need a GPU; where the run is small, only find them."""
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
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
        return {"outcome": f"cut off after {seconds:.0f} s", "seconds": seconds, "said": said.splitlines()[-20:]}
    lines = (done.stdout + done.stderr).splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "outcome": lines[-1].strip("= ") if lines else "nothing", "exit_code": done.returncode,
        "seconds": round(time.monotonic() - began, 1), "said": failures or lines[-20:] if done.returncode else [],
    }  # fmt: skip


# --- the members' streams ---------------------------------------------------------------------------------------------


def make_green_streams(device: torch.device) -> Callable[[], "torch.cuda.Stream"]:
    """Return what makes streams of green contexts with work queues of their own (pytorch#176582); raises RuntimeError.

    Streams of one context share hardware queues, so that work on one may wait for unrelated work on another.
    """
    try:
        from torch.cuda.green_contexts import SUPPORTED, GreenContext
    except ImportError as error:
        raise RuntimeError("this torch has no green contexts") from error
    if not SUPPORTED:
        raise RuntimeError("this torch was built without green contexts")
    kept: list[object] = []  # a context must outlive its streams

    def make() -> "torch.cuda.Stream":
        context = GreenContext.create(workqueue_scope="balanced", device_id=device.index or 0)
        kept.append(context)
        stream: torch.cuda.Stream = context.Stream()  # type: ignore[attr-defined]
        return stream

    make()
    return make


def list_streams(device: torch.device) -> dict[str, Callable[[], "torch.cuda.Stream"] | str]:
    """Return the kinds of streams that members may run on: what makes them, or why there are none."""
    if device.type != "cuda":
        return {"plain": ON_A_CPU, "green contexts": ON_A_CPU, "first one high priority": ON_A_CPU}
    priorities: list[int] = []

    def first_high() -> "torch.cuda.Stream":
        priorities.append(0 if len(priorities) % 2 else -1)
        return torch.cuda.Stream(device, priority=priorities[-1])

    kinds: dict[str, Callable[[], torch.cuda.Stream] | str] = {
        "plain": lambda: torch.cuda.Stream(device), "first one high priority": first_high,
    }  # fmt: skip
    try:
        kinds["green contexts"] = make_green_streams(device)
    except Exception as error:  # beta: whatever it says belongs into the report
        kinds["green contexts"] = f"{type(error).__name__}: {error}"
    return kinds


def compare_streams(pair: str, ours: Ours, size: int, seconds: float) -> list[Figure]:
    """Measure batches with the members on each kind of stream, in blocks that take turns."""
    device, figures = ours.device.torch_device, list[Figure]()
    medians: dict[str, list[list[float]]] = {}
    for kind, make in list_streams(device).items():
        if isinstance(make, str):
            figures.append({
                "pair": pair, "batch": size, "streams": kind, "join_ms": None, "first_ms": None, "second_ms": None, "note": make,
            })  # fmt: skip
    makers = {kind: make for kind, make in list_streams(device).items() if not isinstance(make, str)}
    for _ in range(3):
        for kind, make in makers.items():
            ours.use_streams(make)
            timed = [ours.run(size, "streams") for _ in range(5)]
            ends = time.perf_counter() + seconds / 3 / len(makers)
            while time.perf_counter() < ends:
                timed.append(ours.run(size, "streams"))
            medians.setdefault(kind, []).extend([each.join, *each.members.values()] for each in timed[5:])
    for kind, rows in medians.items():
        join, first, second = (round(float(value) * 1e3, 4) for value in torch.tensor(rows).median(dim=0).values)
        figures.append({
            "pair": pair, "batch": size, "streams": kind, "join_ms": join, "first_ms": first, "second_ms": second, "note": None,
        })  # fmt: skip
    return figures


# --- memory -----------------------------------------------------------------------------------------------------------


def read_memory(pair: str, ours: Ours) -> Figure:
    """Return what a warm ensemble takes on the device."""
    figure: dict[str, object] = {
        "pair": pair, "warm_up_seconds": round(ours.warm_up_seconds, 2), "allocated_mib": None, "reserved_mib": None, "used_mib": None,
        "graphs": ", ".join(f"{name}: {reason}" for name, reason in ours.graphs.items()),
        "members": {name: asdict(memory) for name, memory in ours.ensemble.memory.items()},
    }  # fmt: skip
    if ours.device.torch_device.type == "cuda":
        free, total = torch.cuda.mem_get_info(ours.device.torch_device)
        found = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total - free)
        figure |= {
            key: round(size / 2**20, 1) for key, size in zip(("allocated_mib", "reserved_mib", "used_mib"), found, strict=True)
        }
    return figure


def run_steadily(pair: str, ours: Ours, size: int, batches: int, execution: Execution, seconds: float) -> Figure:
    """Run batch after batch and see whether anything is allocated; fewer where the time is up."""
    on_cuda = ours.device.torch_device.type == "cuda"

    def read() -> dict[str, int]:
        stats = torch.cuda.memory_stats() if on_cuda else {}
        return {counter: int(stats.get(counter, 0)) for counter in COUNTERS} | {"rss": psutil.Process().memory_info().rss}

    for _ in range(20):
        ours.run(size, execution)
    before, began, done = read(), time.perf_counter(), 0
    while done < batches and time.perf_counter() - began < seconds:
        ours.run(size, execution)
        done += 1
    taken, after = time.perf_counter() - began, read()
    grown = {counter: after[counter] - before[counter] for counter in COUNTERS}
    flat = "yes" if not any(grown.values()) else "no pieces of the driver's" if not any(list(grown.values())[1:]) else "no"
    return {
        "pair": pair, "batch": size, "batches": done, "per_second": round(done / taken, 1), **grown,
        "rss_mib": round((after["rss"] - before["rss"]) / 2**20, 2), "is_flat": flat if on_cuda else None,
    }  # fmt: skip


@contextmanager
def _both(pair: str, root: Path, device: str, sizes: Sequence[int]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    ours = load(PAIRS[pair], root / pair, device, sizes, head='execution = "streams"')
    by_hand = ByHand(PAIRS[pair], ours.device.torch_device)
    try:
        yield ours, by_hand
    finally:
        ours.close()
        by_hand.close()


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    is_small: Annotated[bool, typer.Option("--small", help="Small models, few rounds: some seconds, on a CPU too.")] = False,
    result: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where the figures go; the tables go beside.")] = None,
) -> None:
    """Measure all that only a GPU can show."""
    pairs, sizes, seconds, batches = ("launch-bound", "base"), SIZES, 4.0, BATCHES
    if is_small:
        pairs, sizes, seconds, batches = ("launch-bound", "tiny"), (1, 4), 0.05, 50
    torch_device = torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    report = Report(result, torch_device)
    tests = run_tests(is_small, TEST_SECONDS)
    report.add("tests", [tests], [["tests", "seconds"], [str(tests["outcome"]), str(tests["seconds"])]])
    overlap: list[Figure] = []
    streams: list[Figure] = []
    memory: list[Figure] = []
    steady: list[Figure] = []
    with tempfile.TemporaryDirectory() as root:
        for pair in pairs:
            if report.seconds_left < 60:
                break
            with _both(pair, Path(root), device, sizes) as (ours, by_hand):
                memory.append(read_memory(pair, ours))
                overlap += [measure(PAIRS[pair], size, ours, by_hand, min(seconds, report.seconds_left / 20)) for size in sizes]
                steady.append(run_steadily(pair, ours, sizes[0], batches, "streams", min(60.0, report.seconds_left / 4)))
                for size in (sizes[0], sizes[-2]):
                    streams += compare_streams(pair, ours, size, min(seconds, report.seconds_left / 20))
            report.tables = report.tables[:1]
            for part, figures, table in (
                ("overlap", overlap, lay_out(overlap)), ("streams", streams, tabulate(streams, STREAM_COLUMNS)),
                ("memory", memory, tabulate(memory, MEMORY_COLUMNS)), ("steady", steady, tabulate(steady, STEADY_COLUMNS)),
            ):  # fmt: skip
                report.add(part, figures, table)
    if tests.get("exit_code") not in (0, 5):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

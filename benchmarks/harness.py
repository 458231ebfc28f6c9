"""What every benchmark shares: the machine's description, result files, tables, processes on cores of their own, a real server."""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from twinfer_server.demo import running_server

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "ensembles" / "digits"
PACKAGES = ("twinfer", "torch", "grpcio", "protobuf", "numpy", "uvloop")
MIN_ROUNDS = 3

Figure = Mapping[str, object]
Columns = Mapping[str, tuple[str, str]]
"""By a figure's key: the heading above it, and how it is formatted."""

Result = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where the figures go; the tables go beside, as FILE.md.")]
Seconds = Annotated[float, typer.Option(min=0.01, help="How long one run, or one point, measures.")]
Rounds = Annotated[int, typer.Option(min=1, help="How many runs of each, in turns; the median counts.")]
Pinned = Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores on which the two sides run; empty: any."""

    server: frozenset[int]
    load: frozenset[int]

    @classmethod
    def choose(cls, pin: bool | None) -> "Cores":
        """Give each side one core of its own; `pin` None does so where there are two, False leaves both free.

        Raises RuntimeError where `pin` is True and there is one core only.
        """
        cores = sorted(os.sched_getaffinity(0))
        if pin and len(cores) < 2:
            raise RuntimeError(f"cannot pin: found {len(cores)} core; needed: 2")
        if pin is False or len(cores) < 2:
            return cls(frozenset(), frozenset())
        return cls(frozenset(cores[:1]), frozenset(cores[1:2]))

    def __str__(self) -> str:
        if not self.server:
            return "nothing is pinned: server, load generator and everything else share the cores"
        return f"the server is pinned to core {min(self.server)}, the load to core {min(self.load)}"


def pin(cores: frozenset[int]) -> None:
    """Keep the calling process on `cores`; on any core where there are none."""
    if cores:
        os.sched_setaffinity(0, cores)


def worker(cores: frozenset[int]) -> ProcessPoolExecutor:
    """Return a process of its own, on `cores`, that runs what is submitted, one thing after the other."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_settle, initargs=(cores,))


def _settle(cores: frozenset[int]) -> None:
    pin(cores)
    if cores:  # torch has counted those of the machine, and on fewer its threads wait for each other: a minute for 256 small rows
        torch.set_num_threads(len(cores))


@contextmanager
def serving(folder: Path, cores: frozenset[int], arguments: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """Run `twinfer serve FOLDER` on a free port, on `cores`; yield its address and process id, and stop it afterwards."""
    before = os.sched_getaffinity(0)
    pin(cores)  # a process inherits it
    with running_server(folder, arguments=arguments) as address:
        os.sched_setaffinity(0, before)
        yield address, _find_child(address)


def _find_child(address: str) -> int:
    """Return the id of the child process that listens on `address`."""
    port = int(address.rpartition(":")[2])
    for child in psutil.Process().children():
        if any(each.laddr.port == port for each in child.net_connections("tcp") if each.status == psutil.CONN_LISTEN):
            return int(child.pid)
    raise RuntimeError(f"no child process listens on {address}")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and those that it started have used so far, in user code and in the kernel."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def take_turns(ways: Mapping[str, Callable[[], float]], seconds: float, max_rounds: int = 300) -> dict[str, list[float]]:
    """Measure every way once a round, so that a slow spell hits them alike, for so long; the round before does not count.

    Returns each way's values in the order of the rounds, at least three.
    """
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    for number in range(max_rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - began > seconds:
            break
        for name, way in ways.items():
            found[name].append(way())
    return found


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


# --- machine, tables, results -----------------------------------------------------------------------------------------


def describe_machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Return what the figures were measured with."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def tabulate(figures: Sequence[Figure], columns: Columns) -> list[list[str]]:
    """Return figures as cells, headings first; a dash stands for None."""
    rows = [[heading for heading, _ in columns.values()]]
    rows += [["–" if (value := each[key]) is None else format(value, how) for key, (_, how) in columns.items()] for each in figures]
    return rows


def report(
    module: str, machine: Mapping[str, object], setup: Mapping[str, object], figures: Sequence[Figure],
    tables: Sequence[Sequence[Sequence[str]]], result: Path | None,
) -> None:  # fmt: skip
    """Print tables, and write them and the figures where there is a file to write to."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {', '.join(map(' '.join, describe_versions().items()))}")
    for heads, *rows in tables:
        table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
        for number, heading in enumerate(heads):  # what is no number stands on the left
            table.add_column(heading, justify="left" if any(row[number][:1].isalpha() for row in rows) else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if result:
        write_result(result, module, machine, setup, figures, tables)


def write_result(
    path: Path, module: str, machine: Mapping[str, object], setup: Mapping[str, object], figures: Sequence[Figure],
    tables: Sequence[Sequence[Sequence[str]]] = (),
) -> None:  # fmt: skip
    """Write a JSON file: what was measured, on what, with what, by which command, when; and `tables` in Markdown beside it."""
    command, date = shlex.join(["python", "-m", module, *sys.argv[1:]]), datetime.now(UTC).isoformat(timespec="seconds")
    versions = describe_versions()
    result = {
        "command": command, "date": date, "machine": machine, "versions": versions, "setup": setup, "figures": figures,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if tables:
        text = f"`{command}`, {date}\n\n" + "".join(f"- {key}: {value}\n" for key, value in {**machine, **versions}.items())
        for heads, *rows in tables:
            text += "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, ["---"] * len(heads), *rows))
        path.with_suffix(".md").write_text(text, encoding="utf-8")

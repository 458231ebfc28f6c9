"""How long a start takes, until a caller who asks again and again has the first answer, and what memory the process takes.

A pair of `benchmarks.peers` in one process, the models in each way of having them, at the first start and at the next ones, which
find the measured plan; beside it plain grpc.aio with the same models. `--requests` then sends so many to each that has its plan.

    python -m benchmarks.start --json benchmarks/results/start-cpu.json
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import psutil
import typer
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.harness import ROOT, Cores, cpu_seconds, describe_machine, describe_versions, pin, worker, write_result
from benchmarks.peers.contenders import BARE, CONTENDERS, SERVE, Contender, Running, started
from benchmarks.peers.load import Tally
from benchmarks.peers.loop import ask_first, make_way, prepare
from benchmarks.peers.pairs import PAIRS

WAY = "Infer"
IN_FLIGHT = 32
READINGS = 10
"""How often memory is read while rows are sent."""

WRITE_FILES = """
    import sys
    import torch
    from benchmarks.peers.pairs import PAIRS

    pair, exported, compiled = PAIRS[sys.argv[1]], *sys.argv[2:]
    for name, model in pair.models.items():
        example = torch.stack([torch.from_numpy(row[name]) for row in pair.rows(2)])
        program = torch.export.export(model().eval(), (example,), dynamic_shapes=({0: torch.export.Dim("rows", max=1024)},))
        torch.export.save(program, f"{exported}/{name}.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=f"{compiled}/{name}.pt2")
"""
"""Run in a process of its own, for exporting and compiling bring much with them."""


@dataclass(frozen=True, slots=True)
class Case:
    """Who is started: `contender`, on the models as `folder` has them."""

    contender: Contender
    folder: Path
    is_first: bool = False
    """Whether it has no plan from an earlier start."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.contender.name


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds and CPU seconds from the process's begin to the first answer, and the most memory until then, in MiB."""

    first_answer_seconds: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Growth:
    """What memory a server has, in MiB, when it has answered so many requests."""

    requests: tuple[int, ...]
    resident_mib: tuple[float, ...]

    @property
    def bytes_per_request(self) -> float:
        """How steep it is over the second half."""
        half = len(self.requests) // 2
        return statistics.linear_regression(self.requests[half:], self.resident_mib[half:]).slope * 2**20


def make_cases(pair: str, root: Path) -> list[Case]:
    """Write the ensemble with the models in each way, and give all who are measured."""
    files = {name: f"{name}.pt2" for name in PAIRS[pair].models}
    python = PAIRS[pair].write(root / "python")
    exported, compiled = (PAIRS[pair].write(root / name, files) for name in ("exported", "compiled"))
    command = [sys.executable, "-W", "ignore", "-c", dedent(WRITE_FILES), pair, str(exported), str(compiled)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    quietly = (*SERVE, "--set", "log_level=warning", "--set")
    cases = []
    for name, folder in {"Python": python, "compiled": compiled, ".pt2": exported}.items():
        cases += [
            Case(Contender(f"{name}, first start", (WAY,), (*quietly, "cache_dir=")), folder, is_first=True),
            Case(Contender(f"{name}, next starts", (WAY,), (*quietly, "cache_dir={folder}/cache")), folder),
        ]
    return [*cases, *(Case(contender, python) for contender in CONTENDERS if contender.name == BARE)]


@contextmanager
def answering(case: Case, pair: str, cores: Cores, loader: ProcessPoolExecutor, log: Path) -> Iterator[tuple[Running, Start]]:
    """Start a server and give it once it has answered, and what that took."""
    with started(case.contender, pair, case.folder, cores.server, log) as server:
        try:
            loader.submit(ask_first, server.address, server.process.pid, pair, WAY).result()
        except RuntimeError as error:
            raise RuntimeError(f"{case.name}: {error}; it said {log.read_text()[-2000:]}") from error
        seconds = time.perf_counter() - server.started_at
        yield server, Start(round(seconds, 3), round(cpu_seconds(server.process.pid), 3), round(server.peak_mib, 1))


def send(address: str, pid: int, pair: str, requests: int) -> Growth:
    """Send so many requests and read the server's memory on the way; raises RuntimeError for a wrong answer."""
    way, process = make_way(WAY, pair), psutil.Process(pid)
    sent, resident = [0], [process.memory_info().rss]
    while sent[-1] < requests:
        tally = Tally(enough=requests / READINGS)
        uvloop.run(way.ask(address, IN_FLIGHT, tally))
        for number, reply in tally.replies:
            way.check(number, reply)
        sent.append(sent[-1] + len(tally.replies))
        resident.append(process.memory_info().rss)
    return Growth(tuple(sent), tuple(round(each / 2**20, 2) for each in resident))


def main(
    json: Annotated[Path | None, typer.Option(help="Where to write the result.")] = None,
    pair: Annotated[str, typer.Option(help="The pair of models.")] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody is started, in turn; the medians count.")] = 5,
    requests: Annotated[int, typer.Option(min=0, help="Requests to each that has a plan, to see its memory grow; 0: none.")] = 0,
    only: Annotated[str, typer.Option(help="Whose name begins so.")] = "",
    pinned: Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")] = None,
) -> None:
    """Measure starts."""
    machine, cores, console = describe_machine(), Cores.choose(pinned), Console(highlight=False)
    console.print(f"{machine['cpu']}; {', '.join(map(' '.join, describe_versions().items()))}; {cores}")
    with tempfile.TemporaryDirectory() as folder, worker(cores.load) as loader:
        pin(cores.load)
        loader.submit(prepare, pair, [WAY]).result()
        root = Path(folder)
        cases = [case for case in make_cases(pair, root) if case.name.startswith(only)]
        starts: dict[str, list[Start]] = {case.name: [] for case in cases}
        growths: dict[str, Growth] = {}
        for number in track(range(rounds + 1), "Starting", console=console, transient=True):
            for case in cases:
                with answering(case, pair, cores, loader, root / "log") as (server, start):
                    if number:  # the start before fills the caches, the files' and the plan's
                        starts[case.name].append(start)
                    if number == rounds and requests and not case.is_first:
                        growths[case.name] = loader.submit(send, server.address, server.process.pid, pair, requests).result()
    figures = [summarise(case.name, starts[case.name], growths.get(case.name)) for case in cases]
    show(figures, console)
    if json:
        setup: dict[str, object] = {
            "pair": pair,
            "rounds": rounds,
            "requests": requests,
            "in_flight": IN_FLIGHT,
            "cores": str(cores),
        }
        write_result(json, "benchmarks.start", machine, setup, figures)


def summarise(name: str, starts: Sequence[Start], growth: Growth | None) -> dict[str, object]:
    """Give a server's medians, its starts, and its growth if that was measured."""
    medians = {key: statistics.median(getattr(start, key) for start in starts) for key in Start.__slots__}
    grown = {"bytes_per_request": round(growth.bytes_per_request, 2), **asdict(growth)} if growth else None
    return {"server": name, **medians, "starts": [asdict(start) for start in starts], "growth": grown}


def show(figures: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a table."""
    table = Table("server", "first answer after s", "CPU s", "peak MiB", "bytes per request", box=None, header_style="dim")
    for figure in figures:
        growth = figure["growth"]
        table.add_row(
            figure["server"], f"{figure['first_answer_seconds']:.2f}", f"{figure['cpu_seconds']:.2f}", f"{figure['peak_mib']:.0f}",
            f"{growth['bytes_per_request']:.1f}" if growth else "-",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

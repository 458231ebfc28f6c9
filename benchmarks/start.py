"""How long a start takes, until a caller who asks again and again has the first answer, and what memory the process takes.

A pair of `benchmarks.peers`, the models as Python and as exported programs; beside it plain grpc.aio with the same models.
`--requests` then sends so many to each server, to see its memory grow.

    python -m benchmarks.start --result benchmarks/results/start-cpu.json
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Annotated

import psutil
import typer
import uvloop

from benchmarks import harness
from benchmarks.harness import ROOT, Columns, Cores, Figure, Pinned, Result, Rounds
from benchmarks.loop import Tally
from benchmarks.peers.contenders import BARE, CONTENDERS, TWINFER, Contender, answering
from benchmarks.peers.pairs import PAIRS
from benchmarks.peers.ways import make_way, prepare

WAY = "Infer"
IN_FLIGHT = 32
READINGS = 10
"""How often memory is read while requests are sent."""
COLUMNS: Columns = {
    "server": ("server", ""), "first_answer_seconds": ("first answer after s", ".2f"), "cpu_seconds": ("CPU s", ".2f"),
    "peak_mib": ("peak MiB", ".0f"), "bytes_per_request": ("bytes a request", ".1f"),
}  # fmt: skip
EXPORT = """
    import sys
    import torch
    from benchmarks.peers.pairs import PAIRS

    for name, model in PAIRS[sys.argv[1]].models.items():
        example = torch.stack([torch.from_numpy(inputs[name]) for inputs in PAIRS[sys.argv[1]].requests(2)])
        program = torch.export.export(model().eval(), (example,), dynamic_shapes=({0: torch.export.Dim("samples", max=1024)},))
        torch.export.save(program, f"{sys.argv[2]}/{name}.pt2")
"""
"""Run in a process of its own, for exporting brings much with it."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is started: `contender`, on the models as `folder` has them."""

    contender: Contender
    folder: Path


def make_cases(pair: str, root: Path) -> list[Case]:
    """Write the ensemble with the models in each way, and return all that is measured."""
    python = PAIRS[pair].write(root / "python")
    exported = PAIRS[pair].write(root / "exported", {name: f"{name}.pt2" for name in PAIRS[pair].models})
    command = [sys.executable, "-W", "ignore", "-c", dedent(EXPORT), pair, str(exported)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    known = {contender.name: contender for contender in CONTENDERS}
    folders = {"Python": python, ".pt2": exported}
    ours = [Case(replace(known[TWINFER], name=f"twinfer, {name}"), folder) for name, folder in folders.items()]
    return [*ours, Case(known[BARE], python)]


def send(address: str, pid: int, pair: str, requests: int) -> tuple[list[int], list[float]]:
    """Send so many requests and read the server's memory on the way, in MiB; raises RuntimeError for a wrong answer."""
    way, process = make_way(WAY, pair), psutil.Process(pid)
    sent, resident = [0], [process.memory_info().rss / 2**20]
    while sent[-1] < requests:
        tally = Tally(enough=requests / READINGS)
        uvloop.run(way.ask(address, IN_FLIGHT, tally))
        for number, reply in tally.replies:
            way.check(number, reply)
        sent.append(sent[-1] + len(tally.replies))
        resident.append(round(process.memory_info().rss / 2**20, 2))
    return sent, resident


def summarise(name: str, starts: Sequence[dict[str, float]], growth: tuple[list[int], list[float]] | None) -> Figure:
    """Return a server's medians, its starts, and how its memory grew over the second half of the requests."""
    medians = {key: round(statistics.median(start[key] for start in starts), 3) for key in starts[0]}
    slope = None
    if growth:
        half = len(growth[0]) // 2
        slope = round(statistics.linear_regression(growth[0][half:], growth[1][half:]).slope * 2**20, 2)
    return {"server": name, **medians, "bytes_per_request": slope, "starts": starts, "requests_and_mib": growth}


def main(
    result: Result = None,
    pair: Annotated[str, typer.Option(help="The pair of models.")] = "small",
    rounds: Rounds = 5,
    requests: Annotated[int, typer.Option(min=0, help="Requests to each, to see its memory grow; 0: none.")] = 0,
    only: Annotated[str, typer.Option(help="What has a name that begins so.")] = "",
    pinned: Pinned = None,
) -> None:
    """Measure starts."""
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    with tempfile.TemporaryDirectory() as root, harness.worker(cores.load) as loader:
        harness.pin(cores.load)
        loader.submit(prepare, pair, [WAY]).result()
        make = partial(make_way, WAY, pair)
        cases = [case for case in make_cases(pair, Path(root)) if case.contender.name.startswith(only)]
        starts: dict[str, list[dict[str, float]]] = {case.contender.name: [] for case in cases}
        growths: dict[str, tuple[list[int], list[float]]] = {}
        for number in range(rounds + 1):
            for case in cases:
                with answering(case.contender, pair, case.folder, cores.server, loader, make) as server:
                    if number:  # the start before fills the caches of files
                        starts[case.contender.name].append({
                            "first_answer_seconds": server.first_answer_seconds, "cpu_seconds": harness.cpu_seconds(server.pid),
                            "peak_mib": server.peak_mib,
                        })  # fmt: skip
                    if number == rounds and requests:
                        sent = loader.submit(send, server.address, server.pid, pair, requests)
                        growths[case.contender.name] = sent.result()
    figures = [summarise(name, found, growths.get(name)) for name, found in starts.items()]
    table = harness.tabulate(figures, COLUMNS)
    setup: dict[str, object] = {"pair": pair, "rounds": rounds, "requests": requests, "in_flight": IN_FLIGHT, "cores": str(cores)}
    harness.report("benchmarks.start", machine, setup, figures, [table], result)


if __name__ == "__main__":
    typer.run(main)

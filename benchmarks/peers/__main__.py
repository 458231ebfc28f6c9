"""twinfer beside other servers that hold the same two models, in one run, and the marks that it has to reach there.

Every server runs in a process of its own on one core, the load on another; then the small pair once more with nothing pinned. Each
way of asking is measured in interleaved rounds; figures are medians of the runs, and every answer is compared with plain torch.

    python -m benchmarks.peers --result benchmarks/results/peers-cpu.json
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from benchmarks import harness
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import Served, median_of, run_loop
from benchmarks.peers.contenders import CONTENDERS, Contender, Running, answering
from benchmarks.peers.marks import FREE, PINNED, Point, judge
from benchmarks.peers.pairs import PAIRS
from benchmarks.peers.ways import WAYS, make_way, prepare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Runs = dict[Point, list[Served]]
POINT_COLUMNS: Columns = {
    "pair": ("pair", ""), "cores": ("cores", ""), "in_flight": ("in flight", "d"), "server": ("server", ""), "way": ("way", ""),
    "requests_per_second": ("requests/s", ",.0f"), "p50_ms": ("p50 ms", ".2f"), "p99_ms": ("p99 ms", ".2f"),
    "server_cpu_ms": ("server CPU ms a request", ".3f"), "batch_size": ("batch", ".1f"),
}  # fmt: skip
SERVER_COLUMNS: Columns = {
    "pair": ("pair", ""), "cores": ("cores", ""), "server": ("server", ""), "version": ("version", ""),
    "first_answer_seconds": ("first answer after s", ".2f"), "peak_mib": ("peak memory MiB", ",.0f"),
    "why_not": ("not measured because", ""),
}  # fmt: skip
MARK_COLUMNS: Columns = {"mark": ("mark", ""), "value": ("value", ".3f"), "wanted": ("wanted", ""), "outcome": ("outcome", "")}


def start_all(
    pair: str, kind: str, contenders: Sequence[Contender], root: Path, cores: Cores, loader: ProcessPoolExecutor, stack: ExitStack
) -> tuple[list[Running], list[dict[str, object]]]:
    """Start all that can be, one after the other, until each has answered; return them, and what is known of each contender."""
    loader.submit(prepare, pair, sorted({way for contender in contenders for way in contender.ways})).result()
    folder = PAIRS[pair].write(root / f"{pair}-{kind}")
    running: list[Running] = []
    facts: list[dict[str, object]] = []
    for contender in contenders:
        why_not, seconds = contender.why_not, None
        if not why_not:
            make = partial(make_way, contender.ways[0], pair)
            try:
                server = stack.enter_context(answering(contender, pair, folder, cores.server, loader, make))
            except RuntimeError as error:
                if not contender.package:
                    raise
                why_not = str(error)
            else:
                seconds = round(server.first_answer_seconds, 2)
                running.append(server)
        facts.append({
            "pair": pair, "cores": kind, "server": contender.name, "version": contender.version or None,
            "first_answer_seconds": seconds, "peak_mib": None, "why_not": why_not or None,
        })  # fmt: skip
    return running, facts


def measure(
    pair: str, kind: str, servers: Sequence[Running], loader: ProcessPoolExecutor, levels: Sequence[int], rounds: int,
    seconds: float, on_run: Callable[[str], None],
) -> Runs:  # fmt: skip
    """Run every way of every server at every level, `rounds` times in turn, so that a slow spell hits them alike."""
    runs: Runs = {}
    for number in range(rounds):
        for in_flight in levels:
            for server in servers:
                for way in server.contender.ways:
                    if in_flight < WAYS[way].requests_per_message:
                        continue
                    on_run(f"{pair}, {kind}, round {number + 1}, {in_flight} in flight: {server.contender.name}, {way}")
                    make = partial(make_way, way, pair)
                    served = loader.submit(run_loop, make, server.address, server.pid, in_flight, seconds).result()
                    runs.setdefault(Point(pair, kind, in_flight, server.contender.name, way), []).append(served)
    return runs


def choose_passes(pairs: Sequence[str], levels: Sequence[int], pinned: bool | None) -> list[tuple[str, str, Cores, Sequence[int]]]:
    """Return what is measured: pair, kind of cores, the cores, levels. By default all pinned, and the small pair free as well."""
    found = Cores.choose(pinned)
    kind = PINNED if found.server else FREE
    passes: list[tuple[str, str, Cores, Sequence[int]]] = [(pair, kind, found, levels) for pair in pairs]
    if kind == PINNED and "small" in pairs:
        passes.append(("small", FREE, Cores.choose(False), [level for level in levels if level > 1]))
    return passes


@app.command()
def main(
    result: Result = None,
    seconds: Seconds = 2.0,
    rounds: Rounds = 5,
    concurrency: Annotated[str, typer.Option(help="Requests in flight, by comma.")] = "1,32,64",
    pairs: Annotated[str, typer.Option(help="Pairs of models, by comma.")] = "noop,small",
    only: Annotated[str, typer.Option(help="Servers, by comma: twinfer, bare, lean, Mosec, Triton.")] = "",
    pinned: Pinned = None,
) -> None:
    """Measure twinfer and its peers."""
    contenders = [contender for contender in CONTENDERS if not only or contender.name.lower() in only.lower().split(",")]
    levels = [int(level) for level in concurrency.split(",")]
    machine = harness.describe_machine()
    runs: Runs = {}
    servers: list[dict[str, object]] = []
    bar = Progress(
        TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True, refresh_per_second=2
    )
    passes = choose_passes(pairs.split(","), levels, pinned)
    with tempfile.TemporaryDirectory() as root, bar:
        task = bar.add_task("", total=None)
        for pair, kind, cores, at in passes:
            bar.update(task, description=f"{pair}, {kind}: starting")
            with harness.worker(cores.load) as loader, ExitStack() as stack:
                running, facts = start_all(pair, kind, contenders, Path(root), cores, loader, stack)
                runs |= measure(pair, kind, running, loader, at, rounds, seconds, lambda text: bar.update(task, description=text))
                peaks = {server.contender.name: round(server.peak_mib, 1) for server in running}
            servers += [fact | {"peak_mib": peaks.get(str(fact["server"]))} for fact in facts]
    medians = {point: median_of(found) for point, found in runs.items()}
    figures: list[Figure] = [asdict(point) | _rounded(served) for point, served in medians.items()]
    known = {(str(fact["pair"]), str(fact["server"])): fact for fact in servers if fact["cores"] == passes[0][1]}
    marks: list[Figure] = [mark.to_figure() for mark in judge(medians, known)]
    tables = [
        harness.tabulate(marks, MARK_COLUMNS),
        harness.tabulate(figures, POINT_COLUMNS),
        harness.tabulate(servers, SERVER_COLUMNS),
    ]
    setup: dict[str, object] = {
        "loop": "closed", "rounds": rounds, "seconds": seconds, "passes": [f"{pair}: {cores}" for pair, _, cores, _ in passes],
        "requests_per_message": {name: way.requests_per_message for name, way in WAYS.items()}, "servers": servers, "marks": marks,
    }  # fmt: skip
    harness.report("benchmarks.peers", machine, setup, figures, tables, result)


def _rounded(served: Served) -> dict[str, object]:
    return {key: None if value is None else round(value, 4) for key, value in asdict(served).items()}


if __name__ == "__main__":
    app()

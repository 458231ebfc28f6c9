"""twinfer beside other servers that hold the same two models, in one run.

Every server runs in a process of its own on one core, the load on another. Each way of asking is measured in interleaved rounds;
figures are medians of the runs, ratios medians of the rounds' pairs, and every answer is compared with plain torch, to 1e-5.

    python -m benchmarks.peers --json benchmarks/results/peers-cpu.json --markdown benchmarks/results/peers-cpu.md
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness import Cores, describe_machine, describe_versions, pin, worker, write_result
from benchmarks.peers.contenders import BARE, BATCHER, CONTENDERS, TWINFER, Running, started
from benchmarks.peers.loop import Served, ask_first, prepare, run_load
from benchmarks.peers.pairs import PAIRS
from benchmarks.peers.ways import WAYS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """What a run is of."""

    pair: str
    in_flight: int
    server: str
    way: str


Runs = dict[Point, list[Served]]
Figure = dict[str, object]


def start_all(
    pair: str, root: Path, cores: Cores, loader: ProcessPoolExecutor, stack: ExitStack, say: Callable[[str], None]
) -> tuple[list[Running], dict[str, Figure]]:
    """Start whoever can be, one after the other, until each has answered; give them, and what is known of all, by name."""
    facts: dict[str, Figure] = {
        contender.name: {"pair": pair, "server": contender.name, **dict.fromkeys(SERVER_COLUMNS.keys() - {"pair", "server"})}
        for contender in CONTENDERS
    }
    for contender in CONTENDERS:
        facts[contender.name] |= {"why_not": contender.why_not or None, "version": contender.version or None}
    contenders = [contender for contender in CONTENDERS if not contender.why_not]
    loader.submit(prepare, pair, sorted({way for contender in contenders for way in contender.ways})).result()
    folder = PAIRS[pair].write(root / pair)
    running = []
    for contender in contenders:
        say(f"{pair}: starting {contender.name}")
        log = root / f"{pair}-{contender.name}.log"
        server = stack.enter_context(started(contender, pair, folder, cores.server, log))
        try:
            loader.submit(ask_first, server.address, server.process.pid, pair, contender.ways[0]).result()
        except RuntimeError as error:
            if not contender.environment:
                raise RuntimeError(f"{contender.name}: {error}; it said {log.read_text()[-2000:]}") from error
            facts[contender.name]["why_not"] = f"{error}: {' '.join(log.read_text().split()[-30:])}"
        else:
            facts[contender.name]["first_answer_seconds"] = round(time.perf_counter() - server.started_at, 2)
            running.append(server)
    return running, facts


def measure(
    pair: str, servers: Sequence[Running], loader: ProcessPoolExecutor, levels: Sequence[int], rounds: int, seconds: float,
    on_run: Callable[[str], None],
) -> Runs:  # fmt: skip
    """Run every way of every server at every level, `rounds` times in turn, so that a slow spell hits them alike."""
    runs: Runs = {}
    for number in range(rounds):
        for in_flight in levels:
            for server in servers:
                for way in server.contender.ways:
                    if in_flight < WAYS[way].rows_per_message:
                        continue
                    on_run(f"{pair}, round {number + 1}, {in_flight} in flight: {server.contender.name}, {way}")
                    point = Point(pair, in_flight, server.contender.name, way)
                    served = loader.submit(run_load, server.address, server.process.pid, pair, way, in_flight, seconds).result()
                    runs.setdefault(point, []).append(served)
    return runs


def summarise(runs: Runs) -> list[Figure]:
    """Give the medians of each point; ratios are of rows per second, each run to the one of the same round."""

    def ratio(point: Point, server: str) -> float | None:
        others = runs.get(Point(point.pair, point.in_flight, server, "Infer"))
        if others is None:
            return None
        pairs = zip(runs[point], others, strict=True)
        return round(statistics.median(run.rows_per_second / other.rows_per_second for run, other in pairs), 3)

    return [
        {
            "pair": point.pair,
            "in_flight": point.in_flight,
            "server": point.server,
            "way": point.way,
            "rows_per_second": round(statistics.median(run.rows_per_second for run in found), 1),
            "p50_ms": round(statistics.median(run.p50_ms for run in found), 3),
            "p99_ms": round(statistics.median(run.p99_ms for run in found), 3),
            "server_cpu_ms_per_row": round(statistics.median(run.server_cpu_ms_per_row for run in found), 4),
            "ratio_to_bare": ratio(point, BARE),
            "ratio_to_batcher": ratio(point, BATCHER),
            "ratio_to_infer": ratio(point, TWINFER),
        }
        for point, found in runs.items()
    ]


COLUMNS = {
    "pair": ("pair", ""),
    "in_flight": ("in flight", "d"),
    "server": ("server", ""),
    "way": ("way", ""),
    "rows_per_second": ("rows/s", ",.0f"),
    "p50_ms": ("p50 ms", ".2f"),
    "p99_ms": ("p99 ms", ".2f"),
    "server_cpu_ms_per_row": ("CPU ms per row", ".3f"),
    "ratio_to_bare": ("ratio to bare", ".2f"),
    "ratio_to_batcher": ("ratio to batcher", ".2f"),
    "ratio_to_infer": ("ratio to twinfer's Infer", ".2f"),
}
SERVER_COLUMNS = {
    "pair": ("pair", ""),
    "server": ("server", ""),
    "version": ("version", ""),
    "first_answer_seconds": ("first answer after s", ".2f"),
    "peak_mib": ("peak memory MiB", ",.0f"),
    "why_not": ("not measured because", ""),
}
Columns = dict[str, tuple[str, str]]


def lay_out(figures: Sequence[Figure], columns: Columns) -> list[list[str]]:
    """Write figures as cells, headings first; what is None is a dash."""
    rows = [[heading for heading, _ in columns.values()]]
    rows += [
        ["–" if figure[key] is None else format(figure[key], spec) for key, (_, spec) in columns.items()] for figure in figures
    ]
    return rows


def show(rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in ("pair", "server", "way") else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def write_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@app.command()
def main(
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables there.")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long one run measures.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many runs of each; the median counts.")] = 5,
    concurrency: Annotated[str, typer.Option(help="Rows in flight, by comma.")] = "1,32,64",
    pairs: Annotated[str, typer.Option(help="Pairs of models, by comma.")] = ",".join(PAIRS),
    pinned: Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")] = None,
) -> None:
    """Measure twinfer and its peers."""
    levels = [int(level) for level in concurrency.split(",")]
    machine, cores, console = describe_machine(), Cores.choose(pinned), Console(highlight=False)
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {', '.join(map(' '.join, describe_versions().items()))}")
    console.print(f"Closed loops of rows; {cores}.")
    figures: list[Figure] = []
    servers: list[Figure] = []
    bar = Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True, refresh_per_second=2)
    with tempfile.TemporaryDirectory() as root, worker(cores.load) as loader, bar:
        pin(cores.load)
        task = bar.add_task("", total=None)

        def say(text: str) -> None:
            bar.update(task, description=text)

        for pair in pairs.split(","):
            with ExitStack() as stack:
                running, facts = start_all(pair, Path(root), cores, loader, stack, say)
                runs = measure(pair, running, loader, levels, rounds, seconds, say)
                for server in running:
                    facts[server.contender.name]["peak_mib"] = round(server.peak_mib, 1)
            figures += summarise(runs)
            servers += facts.values()
    tables = [lay_out(figures, COLUMNS), lay_out(servers, SERVER_COLUMNS)]
    for rows in tables:
        show(rows, console)
    if markdown is not None:
        markdown.write_text("\n".join(map(write_markdown, tables)), encoding="utf-8")
    if json_file is not None:
        setup: dict[str, object] = {
            "loop": "closed", "rounds": rounds, "seconds_per_run": seconds,
            "rows_per_message": {name: way.rows_per_message for name, way in WAYS.items()},
            "server_cores": sorted(cores.server) or "any", "load_cores": sorted(cores.load) or "any", "servers": servers,
        }  # fmt: skip
        write_result(json_file, "benchmarks.peers", machine, setup, figures)


if __name__ == "__main__":
    app()

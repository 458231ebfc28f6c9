"""What serving costs: a closed loop of calls against the digits server, beside the same two models called in-process.

make bench ARGS="--json FILE --seconds 2 --rounds 5 --concurrency 1,8,32,64 --pin"
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness import DIGITS, Cores, describe_machine, describe_versions, pin, serving, worker, write_result
from benchmarks.load import Served, make_load, run_load
from benchmarks.reference import InProcess, run_reference
from twinfer_server.demo import read_rows
from twinfer_server.spec import read_spec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one number of calls in flight, and the in-process run right after it."""

    in_flight: int
    batch: int
    served: Served
    in_process: InProcess


def measure(cores: Cores, levels: Sequence[int], seconds: float, rounds: int, console: Console) -> tuple[list[Run], float]:
    """Run all levels `rounds` times in turn, so that a slow spell hits them alike; give the runs and the server's accuracy."""
    rows = read_rows(DIGITS)
    max_batch_size = read_spec(DIGITS).batching.max_batch_size
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, refresh_per_second=2)
    with worker(cores.load) as loader, worker(cores.server) as referee, serving(DIGITS, cores.server) as server, bar:
        pin(cores.load)
        load, accuracy = loader.submit(make_load, server, rows).result()
        stated = json.loads((DIGITS / "accuracies.json").read_text(encoding="utf-8"))["fused"]
        if round(accuracy, 4) != stated:
            raise RuntimeError(f"the server's accuracy is {accuracy:.4f}; the folder states {stated}")
        runs = []
        task = bar.add_task("", total=rounds * len(levels))
        for number in range(rounds):
            for in_flight in levels:
                bar.update(task, description=f"round {number + 1}, {in_flight} in flight")
                batch = min(in_flight, max_batch_size)
                served = loader.submit(run_load, server, load, in_flight, seconds).result()
                in_process = referee.submit(run_reference, DIGITS, rows, batch, min(seconds, 1.0)).result()
                runs.append(Run(in_flight, batch, served, in_process))
                bar.advance(task)
    return runs, accuracy


def summarise(runs: Sequence[Run]) -> dict[str, object]:
    """Give the medians over the runs of one level; ratios are of each run to the in-process one beside it."""

    def median(value: Callable[[Run], float], digits: int) -> float:
        return round(statistics.median(map(value, runs)), digits)

    rates = sorted(run.served.requests_per_second for run in runs)
    return {
        "in_flight": runs[0].in_flight,
        "requests_per_second": median(lambda run: run.served.requests_per_second, 1),
        "requests_per_second_lowest_highest": [round(rates[0], 1), round(rates[-1], 1)],
        "p50_ms": median(lambda run: run.served.p50_ms, 3),
        "p99_ms": median(lambda run: run.served.p99_ms, 3),
        "server_cpu_ms_per_request": median(lambda run: run.served.server_cpu_ms, 4),
        "rows_per_flight": median(lambda run: run.served.batch_size, 1),
        "in_process_batch": runs[0].batch,
        "in_process_rows_per_second": median(lambda run: run.in_process.rows_per_second, 1),
        "in_process_model_rows_per_second": median(lambda run: run.in_process.model_rows_per_second, 1),
        "ratio_to_in_process": median(lambda run: run.served.requests_per_second / run.in_process.rows_per_second, 4),
        "ratio_to_in_process_models": median(lambda run: run.served.requests_per_second / run.in_process.model_rows_per_second, 4),
    }


COLUMNS = {
    "in_flight": ("in\nflight", "d"),
    "requests_per_second": ("requests\nper s", ",.0f"),
    "p50_ms": ("p50\nms", ".2f"),
    "p99_ms": ("p99\nms", ".2f"),
    "server_cpu_ms_per_request": ("server\nCPU ms", ".3f"),
    "rows_per_flight": ("rows per\nflight", ".1f"),
    "in_process_rows_per_second": ("in-process\nrows per s", ",.0f"),
    "ratio_to_in_process": ("\nratio", ".3f"),
    "in_process_model_rows_per_second": ("models\nalone", ",.0f"),
    "ratio_to_in_process_models": ("\nratio", ".3f"),
}


def show(figures: Sequence[dict[str, object]], console: Console) -> None:
    """Print the table."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in figures:
        table.add_row(*(format(entry[key], spec) for key, (_, spec) in COLUMNS.items()))
    console.print(table)


@app.command()
def main(
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="How long one run measures.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="How many runs at each level; the median counts.")] = 5,
    concurrency: Annotated[str, typer.Option(help="Calls in flight, by comma.")] = "1,8,32,64",
    pinned: Annotated[bool | None, typer.Option("--pin/--no-pin", help="A core a side. Default: where there are two.")] = None,
) -> None:
    """Measure the digits server and the same models in-process."""
    levels = [int(level) for level in concurrency.split(",")]
    machine, cores, console = describe_machine(), Cores.choose(pinned), Console(highlight=False)
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {', '.join(map(' '.join, describe_versions().items()))}")
    console.print(f"Closed loop, unary Infer, image and text; {cores}.")
    runs, accuracy = measure(cores, levels, seconds, rounds, console)
    figures = [summarise([run for run in runs if run.in_flight == level]) for level in levels]
    show(figures, console)
    console.print(
        f"Medians of {rounds} interleaved runs of {seconds:g} s. All answers checked: the same labels as one by one, "
        f"accuracy {accuracy:.1%} as stated.\n"
        "In-process: plain torch, one thread, batches as large as the calls in flight, at most as a flight is; with decoding and "
        "tokenising, and the models and the fusion alone."
    )
    if json_file is not None:
        setup: dict[str, object] = {
            "ensemble": "digits", "rpc": "Infer", "loop": "closed", "rounds": rounds, "seconds_per_run": seconds,
            "server_cores": sorted(cores.server) or "any", "load_cores": sorted(cores.load) or "any",
            "accuracy": round(accuracy, 4),
        }  # fmt: skip
        write_result(json_file, "benchmarks.serving", machine, setup, figures)
        console.print(f"Written to {json_file}.")


if __name__ == "__main__":
    app()

"""What `deterministic = true` costs: batches padded to the one largest bucket, against batches padded to their own size.

Both ensembles are in one process and run in interleaved pairs; times are medians from fork to join, ratios medians of the pairs.

    python -m benchmarks.determinism --result benchmarks/results/determinism-cpu.json
"""

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import Columns, Figure, describe_machine, make_console, paired, show, tabulate, take_turns, write_result
from benchmarks.overlap import PAIRS, load

SIZES = (1, 4, 16, 32)
COLUMNS: Columns = {
    "pair": ("pair", ""), "batch": ("batch", "d"), "usual_ms": ("usual, ms", ".3f"),
    "deterministic_ms": ("deterministic, ms", ".3f"), "ratio": ("ratio", ".2f"),
}  # fmt: skip


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    pairs: Annotated[str, typer.Option(help=f"By comma: {', '.join(PAIRS)}.")] = "tiny,small",
    seconds: Annotated[float, typer.Option(min=0.01, help="How long a point takes.")] = 3.0,
    result: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where the figures go; the table goes beside.")] = None,
) -> None:
    """Measure pairs of models."""
    machine, figures = describe_machine(), list[Figure]()
    with tempfile.TemporaryDirectory() as root:
        for pair in (PAIRS[each] for each in pairs.split(",")):
            usual = load(pair, Path(root) / pair.name, device, SIZES)
            fixed = load(pair, Path(root) / f"{pair.name}-fixed", device, SIZES, head="deterministic = true")
            for size in SIZES:
                ways = {
                    name: lambda ours=ours, size=size: ours.run(size, ours.ensemble.execution).join  # type: ignore[misc]
                    for name, ours in (("usual", usual), ("fixed", fixed))
                }
                found = take_turns(ways, seconds)
                median = {way: round(statistics.median(times) * 1e3, 4) for way, times in found.items()}
                ratio = round(paired(found["fixed"], found["usual"]), 3)
                figures.append({
                    "pair": pair.name, "batch": size, "usual_ms": median["usual"], "deterministic_ms": median["fixed"], "ratio": ratio,
                })  # fmt: skip
            usual.close()
            fixed.close()
    table = tabulate(figures, COLUMNS)
    show(table, make_console())
    if result:
        write_result(result, "benchmarks.determinism", machine, {"device": device, "seconds": seconds}, figures, [table])


if __name__ == "__main__":
    typer.run(main)

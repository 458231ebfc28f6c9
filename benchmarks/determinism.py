"""What `deterministic = true` costs: flights at the one largest bucket, against flights of the same rows at their own size.

Both ensembles are in one process and fly in interleaved pairs under the plan that each chose at warm-up; times are medians from
fork to join, ratios are medians of the pairs.

    python -m benchmarks.determinism --json benchmarks/results/determinism-cpu.json
"""

import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.encoders import write_pair
from benchmarks.harness import DIGITS, describe_machine, write_result
from benchmarks.overlap import load
from twinfer_server.device import open_device
from twinfer_server.executor import Ensemble, fly_blank
from twinfer_server.executor.bucket import Bucket
from twinfer_server.spec import SPEC_FILE

ROWS = (1, 4, 16, 32)
MIN_ROUNDS = 5
MAX_ROUNDS = 201
SECONDS_PER_POINT = 3.0
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Point:
    """One pair of members at one number of rows; times in milliseconds."""

    pair: str
    rows: int
    usual_ms: float
    deterministic_ms: float
    ratio: float


def copy_deterministic(folder: Path, target: Path) -> Path:
    """Copy an ensemble folder and make it deterministic."""
    shutil.copytree(folder, target)
    spec = target / SPEC_FILE
    spec.write_text("deterministic = true\n" + spec.read_text(encoding="utf-8"), encoding="utf-8")
    return target


def measure(usual: Ensemble, deterministic: Ensemble, rows: int) -> Point:
    """Fly the same number of rows both ways, round by round."""
    tokens = max(member.token_sizes[-1] for member in usual.members)
    everybody, bucket = tuple(range(len(usual.members))), Bucket(rows, tokens)
    seen: dict[str, list[float]] = {"usual": [], "deterministic": []}
    began = time.perf_counter()
    with torch.inference_mode():
        for number in range(-2, MAX_ROUNDS):  # the first two pay for caches
            if number >= MIN_ROUNDS and time.perf_counter() - began > SECONDS_PER_POINT:
                break
            for way, ensemble in (("usual", usual), ("deterministic", deterministic)):
                assert ensemble.times is not None
                seconds = fly_blank(ensemble, ensemble.times.execution(rows, tokens), bucket, everybody).wall_seconds
                if number >= 0:
                    seen[way].append(seconds)
    ratio = statistics.median(after / before for before, after in zip(seen["usual"], seen["deterministic"], strict=True))
    usual_ms, deterministic_ms = (statistics.median(times) * 1e3 for times in seen.values())
    return Point(usual.spec.name, rows, usual_ms, deterministic_ms, ratio)


def main(
    json: Annotated[Path | None, typer.Option(help="Where to write the result.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure, print a table, and write the result."""
    points, machine = [], describe_machine()
    with tempfile.TemporaryDirectory() as temporary:
        opened = open_device(device, lanes=2)
        opened.prepare_thread()
        fingerprint = opened.fingerprint
        folders = [DIGITS, write_pair(Path(temporary) / "encoders", "small", max(ROWS))]
        for folder in folders:
            target = copy_deterministic(folder, Path(temporary) / f"deterministic-{folder.name}")
            usual, deterministic = load(folder, opened), load(target, opened)
            points += [measure(usual, deterministic, rows) for rows in ROWS if rows <= usual.spec.batching.max_batch_size]
    table = Table("pair", "rows", "usual ms", "deterministic ms", "ratio", box=None, header_style="dim")
    for point in points:
        table.add_row(point.pair, str(point.rows), f"{point.usual_ms:.3g}", f"{point.deterministic_ms:.3g}", f"{point.ratio:.2f}")
    console.print(table)
    if json:
        write_result(json, "benchmarks.determinism", machine, {"device": fingerprint}, [asdict(point) for point in points])


if __name__ == "__main__":
    typer.run(main)

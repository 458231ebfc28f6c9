"""How much two members gain from flying side by side: every plan against the members alone, and against what people write by hand.

Each point is measured in interleaved rounds in one process; all times are medians, from fork to join, and ratios are medians of
the pairs. `overlap` is the members' alone times on their lanes added up, over the time of the faster plan that flies them side
by side. By hand means two threads, each with its own stream (on a CPU: one thread of computing each), without staging, fusion
or copy out.

    python -m benchmarks.overlap --json benchmarks/results/overlap-cpu.json --png docs/overlap.png
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.encoders import write_pair
from benchmarks.harness import DIGITS, describe_machine, write_result
from twinfer_server.device import Device, open_device
from twinfer_server.executor import Ensemble, fly_blank, load_ensemble, warm_up
from twinfer_server.executor.bucket import Bucket
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust

ROWS = (1, 4, 16, 64)
MIN_ROUNDS = 5
MAX_ROUNDS = 301
SECONDS_PER_POINT = 3.0
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Point:
    """One pair at one number of rows; times in milliseconds."""

    pair: str
    rows: int
    alone_ms: Mapping[str, float]
    serial_eager_ms: float
    by_hand_ms: float
    plan_ms: Mapping[str, float]
    chosen: str
    overlap_ratio: float
    chosen_to_slower_alone: float
    chosen_to_serial_eager: float
    chosen_to_best_other: float


class ByHand:
    """What people write by hand: a thread per member, each with a stream of its own."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._is_cuda = ensemble.device.torch_device.type == "cuda"
        count = len(ensemble.members)
        self._threads = [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in range(count)]
        self._streams = [torch.cuda.Stream() if self._is_cuda else None for _ in range(count)]

    def seconds(self, bucket: Bucket) -> float:
        """Time all members once, from the first submission to the last end."""
        began = time.perf_counter()
        for future in [thread.submit(self._compute, index, bucket) for index, thread in enumerate(self._threads)]:
            future.result()
        return time.perf_counter() - began

    def _compute(self, index: int, bucket: Bucket) -> None:
        member = self._ensemble.members[index]
        sized = Bucket(
            bucket.samples, min(size for size in member.token_sizes if size >= min(bucket.tokens, member.token_sizes[-1]))
        )
        with torch.inference_mode():
            if not self._is_cuda:
                member.compute(member.slots[0], sized)
                return
            with torch.cuda.stream(self._streams[index]):
                member.compute(member.slots[0], sized)
            self._streams[index].synchronize()  # type: ignore[union-attr]


def load(folder: Path, device: Device) -> Ensemble:
    """Load and warm an ensemble; its own code is trusted."""
    ensemble = load_ensemble(folder, device, Trust.read(True, ()), InputLimits())
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"warming up {ensemble.spec.name}", total=None)
        warm_up(ensemble, None, lambda done, total: bar.update(task, completed=done, total=total))
    return ensemble


def measure(ensemble: Ensemble, eager: Ensemble, by_hand: ByHand, rows: int) -> Point:
    """Measure one number of rows: every way once per round, rounds until the time is up."""
    if ensemble.times is None:
        raise RuntimeError("the ensemble is not warm")
    tokens = max(member.token_sizes[-1] for member in ensemble.members)
    bucket = Bucket(rows, tokens)
    times = ensemble.times.find(bucket)
    plans = [execution for execution in ensemble.plans if times is None or execution in times.plan_seconds]
    chosen = ensemble.times.execution(rows, tokens)
    if "graph" in plans and (0, bucket) not in ensemble.flight_captures:
        plans.remove("graph")  # warm-up keeps a capture only where it was faster; without one, `lanes` flies
        chosen = "streams" if chosen == "graph" else chosen
    everybody = tuple(range(len(ensemble.members)))
    alone_plan = "streams"
    ways: dict[str, Callable[[], float]] = {
        "eager": lambda: fly_blank(eager, "serial", bucket, everybody).wall_seconds,
        "hand": lambda: by_hand.seconds(bucket),
    }
    for index, member in enumerate(ensemble.members):
        ways[f"alone {member.name}"] = lambda index=index: fly_blank(ensemble, alone_plan, bucket, (index,)).wall_seconds  # type: ignore[misc]
    for execution in plans:
        ways[f"plan {execution}"] = lambda execution=execution: fly_blank(ensemble, execution, bucket, everybody).wall_seconds  # type: ignore[misc]
    seen: dict[str, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    with torch.inference_mode():
        for way in ways.values():
            way()
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and time.perf_counter() - began > SECONDS_PER_POINT:
                break
            for name, way in ways.items():
                seen[name].append(way())
    return _summarise(ensemble, rows, chosen, seen)


def _summarise(ensemble: Ensemble, rows: int, chosen: str, seen: Mapping[str, Sequence[float]]) -> Point:
    names = [member.name for member in ensemble.members]
    alone = {name: statistics.median(seen[f"alone {name}"]) for name in names}
    plans = {key.removeprefix("plan "): times for key, times in seen.items() if key.startswith("plan ")}
    flown = plans[chosen]
    slower = seen[f"alone {max(alone, key=lambda name: alone[name])}"]
    others = [times for execution, times in plans.items() if execution != chosen]
    # Only members side by side overlap; serial may be as fast where one member alone can use all cores.
    side_by_side = min(
        (execution for execution in plans if execution != "serial"), key=lambda execution: statistics.median(plans[execution])
    )
    both = [sum(pair) for pair in zip(*(seen[f"alone {name}"] for name in names), strict=True)]
    return Point(
        pair=ensemble.spec.name,
        rows=rows,
        alone_ms={name: seconds * 1e3 for name, seconds in alone.items()},
        serial_eager_ms=statistics.median(seen["eager"]) * 1e3,
        by_hand_ms=statistics.median(seen["hand"]) * 1e3,
        plan_ms={execution: statistics.median(times) * 1e3 for execution, times in plans.items()},
        chosen=chosen,
        overlap_ratio=_paired(both, plans[side_by_side]),
        chosen_to_slower_alone=_paired(flown, slower),
        chosen_to_serial_eager=_paired(flown, seen["eager"]),
        chosen_to_best_other=max((_paired(flown, other) for other in others), default=1.0),
    )


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _list_plans(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(execution for point in points for execution in point.plan_ms))


def show(points: Sequence[Point], device: Device) -> str:
    """Print the table, and give it as Markdown."""
    names = _list_plans(points)
    heads = ["pair", "rows", "alone, ms", "serial eager", "by hand", *names, "chosen", "overlap", "/ slower alone", "/ best other"]
    table = Table(*heads, title=f"fork to join on {device.fingerprint}, ms", box=None, header_style="dim")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for point in points:
        cells = [
            point.pair, str(point.rows), ", ".join(f"{name} {ms:.2f}" for name, ms in point.alone_ms.items()),
            f"{point.serial_eager_ms:.2f}", f"{point.by_hand_ms:.2f}",
            *(f"{point.plan_ms[name]:.2f}" if name in point.plan_ms else "-" for name in names), point.chosen,
            f"{point.overlap_ratio:.2f}", f"{point.chosen_to_slower_alone:.2f}", f"{point.chosen_to_best_other:.3f}",
        ]  # fmt: skip
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    console.print(table)
    return "\n".join(lines) + "\n"


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Draw the times as bars, each as a share of the members' alone times added up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len({point.pair for point in points}), figsize=(11, 4.2), sharey=True, squeeze=False)
    for axis, pair in zip(axes[0], dict.fromkeys(point.pair for point in points), strict=True):
        mine = [point for point in points if point.pair == pair]
        bars = {"serial eager": [p.serial_eager_ms for p in mine], "two threads by hand": [p.by_hand_ms for p in mine]}
        bars |= {f"plan {execution}": [p.plan_ms.get(execution, float("nan")) for p in mine] for execution in _list_plans(mine)}
        width = 0.8 / len(bars)
        for number, (label, values) in enumerate(bars.items()):
            share = [value / sum(point.alone_ms.values()) for value, point in zip(values, mine, strict=True)]
            axis.bar([place + number * width for place in range(len(mine))], share, width, label=label)
        for place, point in enumerate(mine):
            slower = max(point.alone_ms.values()) / sum(point.alone_ms.values())
            axis.plot(
                [place - width, place + 0.8],
                [slower, slower],
                "k:",
                linewidth=1,
                label="slower member alone" if not place else None,
            )
        axis.set_title(pair)
        axis.set_xticks([place + 0.4 - width / 2 for place in range(len(mine))], [f"{point.rows} rows" for point in mine])
        axis.axhline(1.0, color="grey", linewidth=0.8)
    axes[0][0].set_ylabel("fork to join / members' alone times added up")
    axes[0][-1].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(
    device: str = "auto",
    size: Annotated[str, typer.Option(help="small or base; default: base on a GPU, small on a CPU.")] = "",
    json: Annotated[Path | None, typer.Option(help="Where the figures go.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Where the table goes.")] = None,
    png: Annotated[Path | None, typer.Option(help="Where the picture goes.")] = None,
) -> None:
    """Measure the digits pair and a realistic pair."""
    machine = describe_machine()
    opened = open_device(device, lanes=2)
    opened.prepare_thread()
    size = size or ("base" if opened.can_capture else "small")
    points = []
    with tempfile.TemporaryDirectory() as scratch:
        pairs = {
            "digits": [_with_rows(DIGITS, Path(scratch) / f"digits-{capture}", capture) for capture in (True, False)],
            size: [write_pair(Path(scratch) / f"{size}-{capture}", size, max(ROWS), capture=capture) for capture in (True, False)],
        }
        for captured, eager in pairs.values():
            ensemble = load(captured, opened)
            uncaptured = load(eager, opened) if opened.can_capture else ensemble
            by_hand = ByHand(uncaptured)
            points += [measure(ensemble, uncaptured, by_hand, rows) for rows in ROWS]
    table = show(points, opened)
    if json:
        write_result(json, "benchmarks.overlap", machine, {"device": opened.fingerprint}, [asdict(point) for point in points])
    if markdown:
        markdown.write_text(table, encoding="utf-8")
    if png:
        draw(points, png, f"{opened.fingerprint}, torch {torch.__version__}")


def _with_rows(source: Path, folder: Path, capture: bool) -> Path:
    """Copy an ensemble folder, with flights of up to 64 rows, captured or not."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    spec = (source / "ensemble.toml").read_text(encoding="utf-8").replace("max_batch_size = 32", f"max_batch_size = {max(ROWS)}")
    if not capture:
        spec = spec.replace('.pt2"\n', '.pt2"\ncapture = false\n')
    (folder / "ensemble.toml").write_text(spec, encoding="utf-8")
    return folder


if __name__ == "__main__":
    typer.run(main)

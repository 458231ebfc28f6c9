"""What `acceleration = "auto"` gains a member over fp32 eager, on one thread of a CPU, in fp32 and in bf16.

Each way is a member loaded by twinfer from a folder of its own; all of them are in one process and computed in turns, on staged
samples. Times are medians, ratios are medians of the rounds: how many times as fast as fp32 eager. The error is the largest
absolute difference to it over its largest absolute output.

    python -m benchmarks.members --json benchmarks/results/members-cpu.json
"""

import json as json_module
import shlex
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import describe_machine, describe_versions, write_result
from twinfer_server.device import CpuDevice
from twinfer_server.ensemble import Member, load_ensemble
from twinfer_server.ensemble.bucket import Bucket
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.tuning.pace import Paces, pace

MAX_ROWS = 32
TOKENS = 64
ROUNDS = 2
"""How often all ways are timed at each number of rows, in turns."""
WAYS = {
    "fp32 eager": "",
    "fp32 auto": 'precision = "fp32"\nacceleration = "auto"\ntolerance = 1e-4',
    "bf16 auto": 'precision = "bf16"\nacceleration = "auto"\ntolerance = 0.05',
}
INPUTS = {
    "resnet18": 'kind = "image"\nsize = [224, 224]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]',
    "minilm": f'kind = "text"\ntokenizer = "tokenizer.json"\nmax_tokens = {TOKENS}\nmask = true',
}
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Point:
    """One model, one way, one number of rows; `speed_up` over fp32 eager, `spread` the middle half of its rounds."""

    model: str
    way: str
    served: str
    rows: int
    milliseconds: float
    speed_up: float
    spread: tuple[float, float]
    largest_error: float
    megabytes: float


def write_folder(folder: Path, model: str, keys: str) -> Path:
    """Write an ensemble of one member; it takes `--trust-code` to serve it."""
    folder.mkdir(parents=True)
    tokenizer: dict[str, object] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"w{number}": number for number in range(30522)}, "unk_token": "w0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json_module.dumps(tokenizer), encoding="utf-8")
    (folder / "ensemble.toml").write_text(
        f"""\
name = "{model}"
version = 1
task = "embedding"
[members.x]
model = "python:benchmarks.architectures:make_{model}"
output = {{ kind = "embedding" }}
{keys}
[members.x.input.x]
{INPUTS[model]}
[fusion]
method = "concatenation"
[batching]
max_rows = {MAX_ROWS}
""",
        encoding="utf-8",
    )
    return folder


def load(folder: Path) -> Member:
    """Load the one member of a folder; `auto` tries what there is, on one thread."""
    device = CpuDevice(lanes=1)
    [member] = load_ensemble(folder, device, Trust.read(True, ()), InputLimits()).members
    for choice, reason in member.tuned.refused.items():
        console.print(f"[dim]  not {choice}: {reason}[/]", markup=True)
    samples = [tuple(array[:1] for array in member.example(seed, member.token_sizes[-1])) for seed in range(MAX_ROWS)]
    member.slots[0].write(samples, Bucket(MAX_ROWS, member.token_sizes[-1]))
    return member


def measure(model: str, folder: Path) -> list[Point]:
    """Measure all ways of one model, in turns, at one row and at the most."""
    members = {}
    for number, (way, keys) in enumerate(WAYS.items()):
        console.print(f"{model}, {way}")
        members[way] = load(write_folder(folder / f"{model}-{number}", model, keys))
    points = []
    for rows in (1, MAX_ROWS):
        paces = _pace(list(members.values()), rows)
        outputs = [member.compute(member.slots[0], Bucket(rows, member.token_sizes[-1])) for member in members.values()]
        for place, (way, member) in enumerate(members.items()):
            ratios = sorted(one / other for one, other in zip(paces.seconds[0], paces.seconds[place], strict=True))
            points.append(
                Point(
                    model=model,
                    way=way,
                    served=str(member.tuned.choice),
                    rows=rows,
                    milliseconds=paces.medians[place] * 1e3,
                    speed_up=paces.ratio(0, place)[0],
                    spread=(ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]),
                    largest_error=((outputs[place] - outputs[0]).abs().max() / outputs[0].abs().max()).item(),
                    megabytes=member.model.parameter_bytes / 1e6,
                )
            )
    return points


def _pace(members: list[Member], rows: int) -> Paces:
    """Time the members' computing several times over, and put the rounds together."""
    tokens = members[0].token_sizes[-1]
    calls = [lambda member=member: member.compute(member.slots[0], Bucket(rows, tokens)) for member in members]
    runs = [pace(calls, torch.device("cpu")) for _ in range(ROUNDS)]
    return Paces(tuple(tuple(second for run in runs for second in run.seconds[place]) for place in range(len(members))))


def write_page(path: Path, machine: dict[str, object], points: list[Point]) -> None:
    """Write the figures as a page."""
    command = shlex.join(["python", "-m", "benchmarks.members", *sys.argv[1:]])
    has = ", ".join(f"{name}: {'yes' if machine[key] else 'no'}" for name, key in (("AMX", "amx"), ("AVX512-BF16", "avx512_bf16")))
    lines = [
        "# Members: fp32 eager against `auto`, on one thread",
        "",
        f"{machine['cpu']}, {has}, torch {describe_versions()['torch']}; `{command}`. MiniLM sees {TOKENS} tokens.",
        "Speed-up: the median of the rounds, the middle half of them in brackets.",
        "",
        "| model | way | served | rows | ms | speed-up | largest error | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {point.model} | {point.way} | {point.served} | {point.rows} | {point.milliseconds:.2f} | {point.speed_up:.2f} "
        f"({point.spread[0]:.2f} to {point.spread[1]:.2f}) | {point.largest_error:.2g} | {point.megabytes:.1f} |"
        for point in points
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(json: Annotated[Path | None, typer.Option(help="Where to write the result; a page goes beside it.")] = None) -> None:
    """Measure, print a table, and write the result."""
    torch.set_num_threads(1)
    machine = describe_machine() | {
        "amx": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
    }
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        points = [point for model in INPUTS for point in measure(model, Path(temporary))]
    table = Table("model", "way", "served", "rows", "ms", "speed-up", "error", "MB", box=None, header_style="dim")
    for point in points:
        figures = f"{point.milliseconds:.2f}", f"{point.speed_up:.2f}", f"{point.largest_error:.2g}", f"{point.megabytes:.1f}"
        table.add_row(point.model, point.way, point.served, str(point.rows), *figures)
    console.print(table)
    if json:
        write_result(json, "benchmarks.members", machine, {"threads": 1, "tokens": TOKENS}, [asdict(point) for point in points])
        write_page(json.with_suffix(".md"), machine, points)


if __name__ == "__main__":
    typer.run(main)

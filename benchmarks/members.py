"""What twinfer and `acceleration = "auto"` gain a member over plain torch, on one thread of a CPU, in fp32 and in bf16.

Plain torch is the model in fp32, eager, in a process of its own that leaves the memory allocator as it is. The ways are members
loaded by twinfer, each from a folder of its own, in one process whose allocator is set up as a server's. All are computed in turns,
on the same samples. Times are medians, ratios are medians of the rounds: how many times as fast as plain torch. The error is the
largest absolute difference to fp32 eager over its largest absolute output.

    python -m benchmarks.members --json benchmarks/results/members-cpu.json
"""

import json as json_module
import shlex
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import architectures
from benchmarks.harness import describe_machine, describe_versions, worker, write_result
from twinfer_server.device import CpuDevice, keep_freed_memory
from twinfer_server.executor import Member, load_ensemble
from twinfer_server.executor.bucket import Bucket
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.tuning.pace import pace

MAX_ROWS = 32
TOKENS = 64
ROUNDS = 5
"""How often plain torch and all ways are timed at each number of rows, in turns."""
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
    """One model, one way, one number of rows; `speed_up` over plain torch, `spread` the least and the most of its rounds."""

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
max_batch_size = {MAX_ROWS}
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
    """Measure plain torch and all ways of one model, in turns, at one row and at the most."""
    members = {}
    for number, (way, keys) in enumerate(WAYS.items()):
        console.print(f"{model}, {way}")
        members[way] = load(write_folder(folder / f"{model}-{number}", model, keys))
    first = members["fp32 eager"]
    tokens, points = first.token_sizes[-1], []
    for rows in (1, MAX_ROWS):
        with worker(frozenset()) as plain:
            plain.submit(prepare_plain, model, first.arguments(first.slots[0], Bucket(rows, tokens))).result()
            rounds = [(plain.submit(time_plain).result(), _time(list(members.values()), rows)) for _ in range(ROUNDS)]
        outputs = [member.compute(member.slots[0], Bucket(rows, tokens)) for member in members.values()]
        plain_ms = statistics.median(seconds for seconds, _ in rounds) * 1e3
        points.append(Point(model, "plain torch", "", rows, plain_ms, 1.0, (1.0, 1.0), 0.0, first.model.parameter_bytes / 1e6))
        for place, (way, member) in enumerate(members.items()):
            ratios = sorted(seconds / ours[place] for seconds, ours in rounds)
            points.append(
                Point(
                    model=model,
                    way=way,
                    served=str(member.tuned.choice),
                    rows=rows,
                    milliseconds=statistics.median(ours[place] for _, ours in rounds) * 1e3,
                    speed_up=statistics.median(ratios),
                    spread=(ratios[0], ratios[-1]),
                    largest_error=((outputs[place] - outputs[0]).abs().max() / outputs[0].abs().max()).item(),
                    megabytes=member.model.parameter_bytes / 1e6,
                )
            )
    return points


def _time(members: list[Member], rows: int) -> list[float]:
    """Time the members' computing in turns; the median seconds of each."""
    bucket = Bucket(rows, members[0].token_sizes[-1])
    calls = [lambda member=member: member.compute(member.slots[0], bucket) for member in members]
    return pace(calls, torch.device("cpu")).medians


_plain: tuple[torch.nn.Module, tuple[torch.Tensor, ...]]
"""In the process of plain torch: its model, and what it is called with."""


def prepare_plain(model: str, arguments: tuple[torch.Tensor, ...]) -> None:
    """Make the model, in the process of plain torch."""
    global _plain  # what a worker process keeps between its tasks
    torch.set_num_threads(1)
    _plain = getattr(architectures, f"make_{model}")().eval(), arguments


def time_plain() -> float:
    """Time the model, in the process of plain torch; the median seconds."""
    model, arguments = _plain
    with torch.inference_mode():
        return pace([lambda: model(*arguments)], torch.device("cpu")).medians[0]


def write_page(path: Path, machine: dict[str, object], points: list[Point]) -> None:
    """Write the figures as a page."""
    command = shlex.join(["python", "-m", "benchmarks.members", *sys.argv[1:]])
    has = ", ".join(f"{name}: {'yes' if machine[key] else 'no'}" for name, key in (("AMX", "amx"), ("AVX512-BF16", "avx512_bf16")))
    lines = [
        "# Members: plain torch against fp32 eager and `auto`, on one thread",
        "",
        f"{machine['cpu']}, {has}, torch {describe_versions()['torch']}; `{command}`. MiniLM sees {TOKENS} tokens.",
        f"Speed-up over plain torch: the median of {ROUNDS} rounds, the least and the most of them in brackets.",
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
    keep_freed_memory()
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

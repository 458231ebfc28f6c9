"""How much two members gain from running side by side: ours, in turn and on streams, beside each alone and both by hand.

Each point is measured in interleaved rounds in one process. Times are medians from fork to join; ratios are medians of the rounds'
pairs. By hand is plain torch, eager: both models in turn, and both at once, on a GPU on two streams, on a CPU on two threads with
one core each; without staging, fusion and copy out. `overlap` is what ours take alone, added up, over both on streams; with
`--deterministic` the table tells what `deterministic = true` costs as well.

    python -m benchmarks.overlap --result benchmarks/results/overlap-cpu.json
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks import encoders, harness
from benchmarks.harness import Columns, DeviceName, Figure, Result, Seconds
from benchmarks.ours import Ours
from benchmarks.peers.models import CLASSES
from benchmarks.peers.pairs import PAIRS as PEERS
from benchmarks.peers.pairs import Pair, stack

SIZES = (1, 4, 16, 64)
LAYERS, WIDTH = 64, 64


class Chain(nn.Module):
    """Many small kernels, one behind the other: launching them takes longer than they do. float32 [n, 64] to [n, classes]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(*(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x))
        return logits


IMAGE, TEXT = ("float32", (3, 224, 224)), ("int64", (128,))
PAIRS = {
    "launch-bound": Pair("launch-bound", {"left": Chain, "right": Chain}, dict.fromkeys(("left", "right"), ("float32", (WIDTH,)))),
    "tiny": replace(PEERS["small"], name="tiny"),
    "small": Pair(
        "small", {"vision": encoders.make_small_vision, "text": encoders.make_small_text}, {"vision": IMAGE, "text": TEXT}
    ),
    "base": Pair("base", {"vision": encoders.make_base_vision, "text": encoders.make_base_text}, {"vision": IMAGE, "text": TEXT}),
}
"""`base` has the shapes of ViT-B/16 and BERT-base, `small` is a stand-in for a CPU."""


class ByHand:
    """What people write by hand: the models, eager, and a stream or a thread for each."""

    def __init__(self, pair: Pair, device: torch.device) -> None:
        """Make the models and their streams."""
        self._pair, self._device = pair, device
        self.is_cuda = device.type == "cuda"
        self._models = [model().eval().requires_grad_(False).to(device) for model in pair.models.values()]
        self._threads = [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in self._models]
        self._inputs: dict[int, list[Tensor]] = {}
        if self.is_cuda:
            self._streams = [torch.cuda.Stream(device) for _ in self._models]
        self.launch_seconds = 0.0
        """What the host took to launch the last run."""

    def alone(self, index: int, size: int) -> float:
        """Run one model; returns seconds."""
        return self._time(lambda: self._compute(index, size))

    def in_turn(self, size: int) -> float:
        """Run both models, one behind the other; returns seconds."""
        return self._time(lambda: self._compute_all(size))

    def at_once(self, size: int) -> float:
        """Run both models at once; returns the seconds from fork to join."""
        return self._time(lambda: self._fork(size) if self.is_cuda else self._submit(size))

    def _time(self, work: Callable[[], object]) -> float:
        with torch.inference_mode():
            if not self.is_cuda:
                began = time.perf_counter()
                work()
                self.launch_seconds = time.perf_counter() - began
                return self.launch_seconds
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self._device)
            began = time.perf_counter()
            start.record()
            work()
            end.record()
            self.launch_seconds = time.perf_counter() - began
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

    def _compute_all(self, size: int) -> None:
        for index in range(len(self._models)):
            self._compute(index, size)

    def _fork(self, size: int) -> None:
        here = torch.cuda.current_stream(self._device)
        for index, stream in enumerate(self._streams):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                self._compute(index, size)
        for stream in self._streams:
            here.wait_stream(stream)

    def _submit(self, size: int) -> None:
        for future in [thread.submit(self._compute, index, size) for index, thread in enumerate(self._threads)]:
            future.result()

    def _compute(self, index: int, size: int) -> None:
        if size not in self._inputs:
            arrays = stack([*self._pair.requests(min(size, 4))] * (size // min(size, 4)))
            self._inputs[size] = [torch.from_numpy(arrays[name]).to(self._device) for name in self._pair.models]
        with torch.inference_mode():  # a setting of the thread's own
            self._models[index](self._inputs[size][index])

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.shutdown()


def measure(pair: Pair, size: int, ours: Ours, by_hand: ByHand, seconds: float, fixed: Ours | None = None) -> Figure:
    """Measure one batch size: every way once a round. `fixed` is the same ensemble, deterministic."""
    launches: dict[str, list[float]] = {"hand": [], "ours": []}

    def at_once() -> float:
        join = by_hand.at_once(size)
        launches["hand"].append(by_hand.launch_seconds)
        return join

    def on_streams() -> float:
        timed = ours.run(size, "streams")
        launches["ours"].append(timed.launch)
        return timed.join

    ways: dict[str, Callable[[], float]] = {"in turn": lambda: by_hand.in_turn(size), "at once": at_once}
    for index, name in enumerate(ours.names):
        ways[f"hand {name}"] = lambda index=index: by_hand.alone(index, size)  # type: ignore[misc]
        ways[f"ours {name}"] = lambda name=name: ours.run(size, "streams", (name,)).join  # type: ignore[misc]
    ways |= {"serial": lambda: ours.run(size, "serial").join, "streams": on_streams}
    if fixed:
        ways["fixed"] = lambda: fixed.run(size, fixed.ensemble.execution).join
    found = harness.take_turns(ways, seconds)
    both = [sum(each) for each in zip(*(found[f"ours {name}"] for name in ours.names), strict=True)]
    milliseconds = {way: round(statistics.median(times) * 1e3, 4) for way, times in found.items()}
    return {
        "pair": pair.name,
        "batch": size,
        "rounds": len(both),
        "solo_eager_ms": [milliseconds[f"hand {name}"] for name in ours.names],
        "solo_ms": [milliseconds[f"ours {name}"] for name in ours.names],
        "serial_eager_ms": milliseconds["in turn"],
        "by_hand_ms": milliseconds["at once"],
        "serial_ms": milliseconds["serial"],
        "streams_ms": milliseconds["streams"],
        "overlap_ratio": round(harness.paired(both, found["streams"]), 3),
        "streams_to_by_hand": round(harness.paired(found["streams"], found["at once"]), 3),
        "streams_to_serial": round(harness.paired(found["streams"], found["serial"]), 3),
        "deterministic": round(harness.paired(found["fixed"], found[ours.ensemble.execution]), 3) if fixed else None,
        "by_hand_launch_ms": round(statistics.median(launches["hand"]) * 1e3, 4) if by_hand.is_cuda else None,
        "launch_ms": round(statistics.median(launches["ours"]) * 1e3, 4),
    }


COLUMNS: Columns = {
    "pair": ("pair", ""), "batch": ("batch", "d"), "solo_eager": ("alone, eager", ""), "solo": ("alone, ours", ""),
    "serial_eager_ms": ("in turn, eager", ".3f"), "by_hand_ms": ("at once by hand", ".3f"), "serial_ms": ("serial", ".3f"),
    "streams_ms": ("streams", ".3f"), "overlap_ratio": ("overlap", ".2f"), "streams_to_by_hand": ("streams / by hand", ".2f"),
    "streams_to_serial": ("streams / serial", ".2f"), "deterministic": ("deterministic / not", ".2f"),
    "by_hand_launch_ms": ("launch by hand", ".3f"), "launch_ms": ("launch", ".3f"),
}  # fmt: skip


def lay_out(figures: Sequence[Figure]) -> list[list[str]]:
    """Return the table; times are in milliseconds."""

    def join(values: object) -> str:
        assert isinstance(values, list)
        return ", ".join(f"{value:.3f}" for value in values)

    return harness.tabulate(
        [{**each, "solo_eager": join(each["solo_eager_ms"]), "solo": join(each["solo_ms"])} for each in figures], COLUMNS
    )


def load(pair: Pair, folder: Path, device: str, sizes: Sequence[int], head: str = "") -> Ours:
    """Write a pair as an ensemble with batches of the largest of `sizes`, load and warm it."""
    return Ours(pair.write(folder, head=head, batching=f"max_batch_size = {max(sizes)}"), device)


def main(
    device: DeviceName = "auto",
    pairs: Annotated[str, typer.Option(help=f"By comma: {', '.join(PAIRS)}. Default: base on a GPU, small on a CPU.")] = "",
    sizes: Annotated[str, typer.Option(help="Batch sizes, by comma.")] = ",".join(map(str, SIZES)),
    seconds: Seconds = 3.0,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Measure what that costs, too.")] = False,
    result: Result = None,
) -> None:
    """Measure pairs of models."""
    machine, points = harness.describe_machine(), [int(size) for size in sizes.split(",")]
    chosen = pairs or f"launch-bound,{'base' if torch.cuda.is_available() and device != 'cpu' else 'small'}"
    figures: list[Figure] = []
    name = device
    with tempfile.TemporaryDirectory() as root:
        for pair in (PAIRS[each] for each in chosen.split(",")):
            ours = load(pair, Path(root) / pair.name, device, points)
            fixed = load(pair, Path(root) / f"{pair.name}-fixed", device, points, "deterministic = true") if deterministic else None
            by_hand = ByHand(pair, ours.device.torch_device)
            figures += [measure(pair, size, ours, by_hand, seconds, fixed) for size in points]
            name = str(ours.device.torch_device)
            ours.close()
            by_hand.close()
    table = lay_out(figures)
    harness.report("benchmarks.overlap", machine, {"device": name, "seconds": seconds}, figures, [table], result)


if __name__ == "__main__":
    typer.run(main)

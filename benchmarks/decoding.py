"""What it costs to turn a JPEG into 224 x 224 pixels: twinfer's way beside plain Pillow.

Ways take turns. Times are medians of the thread's CPU time, ratios medians of the rounds' pairs against plain Pillow, which is
`Image.open(...).convert("RGB").resize(...)`, bilinear; errors are differences to its pixels, in parts of 255. The pictures are
mosaics of the two photographs that scikit-learn brings.

    python -m benchmarks.decoding --result benchmarks/results/decoding-cpu.json
"""

import io
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import harness
from benchmarks.harness import Columns, Figure, Result, Seconds
from twinfer_server.inputs import InputLimits, make_input
from twinfer_server.inputs.kind import IN_FULL
from twinfer_server.spec import ImageInputSpec
from twinfer_server.types import Array

SIZES = {"1 megapixel": (1152, 864), "4 megapixels": (2304, 1728), "12 megapixels": (4032, 3024)}
QUALITIES = (75, 90)
TARGET = 224
PLAIN = "Pillow"
COLUMNS: Columns = {
    "picture": ("picture", ""), "quality": ("quality", "d"), "kilobytes": ("kB", ",d"), "way": ("way", ""),
    "cpu_ms": ("CPU ms", ".2f"),
    "times_as_fast": ("times as fast", ".2f"), "mean_error": ("mean error", ".2f"), "largest_error": ("largest", "d"),
}  # fmt: skip
Way = Callable[[bytes], Array]


def photograph(width: int, height: int) -> Image.Image:
    """Lay the two photographs side by side, turned about, until the picture is full."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180]
    picture = Image.new("RGB", (width, height))
    for row, top in enumerate(range(0, height, photographs[0].height)):
        for column, left in enumerate(range(0, width, photographs[0].width)):
            tile, turn = photographs[(row + column) % 2], turns[(row + 2 * column) % 4]
            picture.paste(tile if turn is None else tile.transpose(turn), (left, top))
    return picture


def encode(picture: Image.Image, quality: int) -> bytes:
    """Encode as cameras and the web do: a quarter of the colours."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality, subsampling=2)
    return content.getvalue()


def _pillow(content: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((TARGET, TARGET), Image.Resampling.BILINEAR))


def _twinfer(scaled_decoding: bool) -> Way:
    spec = ImageInputSpec(kind="image", size=[TARGET, TARGET], scaled_decoding=scaled_decoding)
    kind = make_input("vision", "image", spec, Path(), InputLimits(), torch.device("cpu"))

    def decode(content: bytes) -> Array:
        [samples] = kind.prepare(kind.decode(content, (TARGET, TARGET) if scaled_decoding else IN_FULL))
        return np.asarray(samples[0])

    return decode


def measure(name: str, quality: int, ways: Mapping[str, Way], seconds: float) -> list[Figure]:
    """Time every way with one picture."""
    content = encode(photograph(*SIZES[name]), quality)
    reference = _pillow(content).astype(int)

    def cost(way: Way) -> float:
        began = time.thread_time()
        way(content)
        return time.thread_time() - began

    found = harness.take_turns({key: lambda way=way: cost(way) for key, way in ways.items()}, seconds)  # type: ignore[misc]
    figures: list[Figure] = []
    for key, way in ways.items():
        errors = np.abs(way(content).astype(int) - reference)
        figures.append({
            "picture": name, "quality": quality, "kilobytes": len(content) // 1000, "way": key,
            "cpu_ms": round(1e3 * statistics.median(found[key]), 3),
            "times_as_fast": round(harness.paired(found[PLAIN], found[key]), 2),
            "mean_error": round(float(errors.mean()), 3), "largest_error": int(errors.max()),
        })  # fmt: skip
    return figures


def main(
    result: Result = None,
    seconds: Seconds = 6.0,
) -> None:
    """Measure all ways with pictures of 1, 4 and 12 megapixels."""
    machine = harness.describe_machine()
    torch.set_num_threads(1)
    ways: dict[str, Way] = {PLAIN: _pillow, "twinfer, in full": _twinfer(False), "twinfer": _twinfer(True)}
    figures = [figure for name in SIZES for quality in QUALITIES for figure in measure(name, quality, ways, seconds)]
    setup = {"target": TARGET, "pillow": version("pillow")}
    harness.report("benchmarks.decoding", machine, setup, figures, [harness.tabulate(figures, COLUMNS)], result)


if __name__ == "__main__":
    typer.run(main)

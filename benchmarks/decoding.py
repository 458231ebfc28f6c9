"""What it costs to turn a JPEG into 224 x 224 pixels: twinfer's way, and what else people use, in one run.

Ways take turns. Times are medians of the thread's CPU time, ratios medians of the rounds' pairs against plain Pillow, which is
`Image.open(...).convert("RGB").resize(...)`, bilinear; errors are differences to its pixels, in parts of 255. The pictures are
mosaics of the two photographs that scikit-learn brings. Other libraries are measured where they are installed
(`pip install simplejpeg opencv-python-headless PyTurboJPEG`; the last needs a libturbojpeg, which no wheel of it brings).

    python -m benchmarks.decoding --result benchmarks/results/decoding-cpu.json
"""

import importlib
import io
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
PACKAGES = ("pillow", "simplejpeg", "opencv-python-headless", "PyTurboJPEG", "scikit-learn")
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


def _resize(pixels: Array) -> Array:
    return np.asarray(Image.fromarray(pixels).resize((TARGET, TARGET), Image.Resampling.BILINEAR))


def _pillow(content: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((TARGET, TARGET), Image.Resampling.BILINEAR))


def _twinfer(scaled_decoding: bool) -> Way:
    spec = ImageInputSpec(kind="image", size=[TARGET, TARGET], scaled_decoding=scaled_decoding)
    kind = make_input("vision", "image", spec, Path(), InputLimits(), torch.device("cpu"))

    def decode(content: bytes) -> Array:
        [samples] = kind.prepare(kind.decode(content, (TARGET, TARGET) if scaled_decoding else IN_FULL))
        return np.asarray(samples[0])

    return decode


def _simplejpeg() -> Way:
    simplejpeg: Any = importlib.import_module("simplejpeg")
    return lambda content: _resize(simplejpeg.decode_jpeg(content, "RGB"))


def _opencv() -> Way:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return lambda content: _resize(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB))


def _pyturbojpeg() -> Way:
    reader: Any = importlib.import_module("turbojpeg").TurboJPEG()
    return lambda content: _resize(reader.decode(content, pixel_format=0))


def find_ways() -> tuple[dict[str, Way], dict[str, str]]:
    """Return the ways by name, plain Pillow first, and why others cannot be measured."""
    ways, missing = {PLAIN: _pillow, "twinfer, in full": _twinfer(False), "twinfer": _twinfer(True)}, {}
    for name, make in {"simplejpeg": _simplejpeg, "OpenCV": _opencv, "PyTurboJPEG": _pyturbojpeg}.items():
        try:
            ways[f"{name} + Pillow's resize"] = make()
        except (ImportError, RuntimeError) as error:
            missing[name] = str(error).splitlines()[0]
    return ways, missing


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


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main(
    result: Result = None,
    seconds: Seconds = 6.0,
) -> None:
    """Measure all ways with pictures of 1, 4 and 12 megapixels."""
    machine, (ways, missing) = harness.describe_machine(), find_ways()
    torch.set_num_threads(1)
    figures = [figure for name in SIZES for quality in QUALITIES for figure in measure(name, quality, ways, seconds)]
    table = harness.tabulate(figures, COLUMNS)
    setup = {"target": TARGET, "packages": {package: _find_version(package) for package in PACKAGES}, "not_measured": missing}
    harness.report("benchmarks.decoding", machine, setup, figures, [table], result)


if __name__ == "__main__":
    typer.run(main)

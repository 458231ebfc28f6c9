"""What it costs to turn a JPEG into 224 x 224 pixels: twinfer's way, and what else people use, in one run.

Every way is measured in interleaved rounds, in a thread that lives on, as in the server. Times are medians of the thread's CPU
time (nothing here computes with more than one), ratios are medians of the pairs against plain Pillow, which is
`Image.open(...).convert("RGB").resize(...)`, bilinear, and errors are differences to its pixels, in parts of 255. `two threads`
says by the clock how much more two threads get done than one: 2.0 means that neither holds the other up. It takes two idle cores
to see that, so on a machine that is busy with other things it is left out.

The pictures are mosaics of the two photographs that scikit-learn brings. Other libraries are measured where they are
installed (`pip install simplejpeg opencv-python-headless PyTurboJPEG`; the latter needs a libturbojpeg, which no wheel of it brings).

    python -m benchmarks.decoding --json benchmarks/results/decoding-cpu.json --markdown benchmarks/results/decoding-cpu.md
"""

import importlib
import io
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.harness import describe_machine, write_result
from twinfer_server.inputs import InputLimits, make_input
from twinfer_server.spec import ImageInputSpec
from twinfer_server.types import Array

SIZES = {"1 megapixel": (1152, 864), "4 megapixels": (2304, 1728), "12 megapixels": (4032, 3024)}
QUALITIES = (75, 90)
TARGET = 224
SECONDS_PER_POINT = 6.0
REPEATS = 4
PLAIN = "Pillow"
PACKAGES = ("pillow", "simplejpeg", "opencv-python-headless", "PyTurboJPEG", "scikit-learn")

Way = Callable[[bytes], Array]


@dataclass(frozen=True, slots=True)
class Figure:
    """One way with one picture; errors are in parts of 255, against plain Pillow."""

    picture: str
    quality: int
    kilobytes: int
    way: str
    milliseconds: float
    times_as_fast: float
    two_threads: float | None
    mean_error: float
    largest_error: int


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


def _pillow_scaled(content: bytes) -> Array:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (int(1.9 * TARGET), int(1.9 * TARGET)))
    return np.asarray(image.resize((TARGET, TARGET), Image.Resampling.BILINEAR))


def _simplejpeg() -> Way:
    simplejpeg: Any = importlib.import_module("simplejpeg")
    return lambda content: _resize(simplejpeg.decode_jpeg(content, "RGB"))


def _twinfer(scaled_decoding: bool) -> Way:
    spec = ImageInputSpec(kind="image", size=[TARGET, TARGET], scaled_decoding=scaled_decoding)
    kind = make_input("vision", "image", spec, Path(), InputLimits(), torch.device("cpu"))

    def decode(content: bytes) -> Array:
        [samples] = kind.prepare(kind.decode(content, kind.min_size))
        return np.asarray(samples[0])

    return decode


def _opencv() -> Way:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return lambda content: _resize(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB))


def _pyturbojpeg() -> Way:
    reader: Any = importlib.import_module("turbojpeg").TurboJPEG()
    return lambda content: _resize(reader.decode(content, pixel_format=0))


def find_ways() -> tuple[dict[str, Way], dict[str, str]]:
    """Give the ways by name, plain Pillow first, and why others could not be measured."""
    ways: dict[str, Way] = {PLAIN: _pillow, "Pillow, scaled (draft)": _pillow_scaled}
    missing = {}
    others = {"simplejpeg": _simplejpeg, "OpenCV": _opencv, "PyTurboJPEG": _pyturbojpeg}
    for name, make in {f"{library} + Pillow's resize": make for library, make in others.items()}.items():
        try:
            ways[name] = make()
        except (ImportError, RuntimeError) as error:
            missing[name] = str(error).splitlines()[0]
    return {**ways, "twinfer, in full": _twinfer(False), "twinfer": _twinfer(True)}, missing


def measure(
    name: str, quality: int, content: bytes, ways: Mapping[str, Way], pool: ThreadPoolExecutor, is_idle: bool
) -> list[Figure]:
    """Time every way with one picture, on the threads of `pool`; `is_idle`: nobody else needs the cores."""
    reference = _pillow(content).astype(int)
    errors = {way: np.abs(run(content).astype(int) - reference) for way, run in ways.items()}
    costs: dict[str, list[float]] = {way: [] for way in ways}
    gains: dict[str, list[float]] = {way: [] for way in ways}
    end = time.perf_counter() + SECONDS_PER_POINT
    while time.perf_counter() < end or len(costs[PLAIN]) < 5:
        for way, run in ways.items():
            cost, alone = _seconds(run, content, 1, pool)
            _, together = _seconds(run, content, 2, pool)
            costs[way].append(cost)
            gains[way].append(2 * alone / together)
    return [
        Figure(
            picture=name, quality=quality, kilobytes=len(content) // 1000, way=way,
            milliseconds=round(1e3 * statistics.median(costs[way]), 3),
            times_as_fast=round(statistics.median(p / s for p, s in zip(costs[PLAIN], costs[way], strict=True)), 2),
            two_threads=round(statistics.median(gains[way]), 2) if is_idle else None,
            mean_error=round(float(errors[way].mean()), 3), largest_error=int(errors[way].max()),
        )
        for way in ways
    ]  # fmt: skip


def _seconds(run: Way, content: bytes, threads: int, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Give the seconds that a picture takes in each of so many threads: CPU time of one of them, and time by the clock."""

    def work() -> float:
        began = time.thread_time()
        for _ in range(REPEATS):
            run(content)
        return time.thread_time() - began

    began = time.perf_counter()
    costs = [job.result() for job in [pool.submit(work) for _ in range(threads)]]
    return costs[0] / REPEATS, (time.perf_counter() - began) / REPEATS


def write_table(figures: list[Figure]) -> str:
    """Write the figures as a table in Markdown."""
    lines = [
        "| picture | JPEG | way | CPU ms | times as fast | two threads | mean error | largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for figure in figures:
        jpeg = f"quality {figure.quality}, {figure.kilobytes:,} kB"
        numbers = f"{figure.milliseconds:.2f} | {figure.times_as_fast:.2f} | {figure.two_threads or '–'} | {figure.mean_error:.2f}"
        lines.append(f"| {figure.picture} | {jpeg} | {figure.way} | {numbers} | {figure.largest_error} |")
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main(
    json: Annotated[Path | None, typer.Option(help="Where the figures go.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Where the table goes.")] = None,
) -> None:
    """Measure all ways with pictures of 1, 4 and 12 megapixels."""
    machine = describe_machine()
    ways, missing = find_ways()
    figures = []
    is_idle = os.getloadavg()[0] < 0.5
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, size in SIZES.items():
            for quality in QUALITIES:
                figures += measure(name, quality, encode(photograph(*size), quality), ways, pool, is_idle)
    table = write_table(figures)
    print(table)
    for way, reason in missing.items():
        print(f"not measured: {way}: {reason}")
    if json:
        setup = {"sizes": SIZES, "target": TARGET, "packages": _versions(), "not_measured": missing}
        write_result(json, "benchmarks.decoding", machine, setup, [asdict(figure) for figure in figures])
    if markdown:
        markdown.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""What a load sends: the rows of a file, or random ones as an ensemble describes its inputs."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy
from PIL import Image

from twinfer.inputs import DTYPES, Value
from twinfer.v1 import ensemble_pb2

FILE = "rows.csv"
WORDS = ("one", "two", "three", "four", "five", "and", "or", "not", "the", "a", "small", "red", "new", "day", "sun", "rain")
COMPARED = 3
"""How many texts a row gives to an input that takes several."""
FREE_SIZE = 16
"""The size of a tensor's dimension that may have any."""
GRAIN = 8
"""Pixels per random value along an image's edge: noise in each would make a JPEG far larger than any photograph's."""
JPEG_QUALITY = 90


def read_rows(path: Path, ensemble: ensemble_pb2.Ensemble) -> list[dict[str, Value]]:
    """Return every row of a CSV file, or of the `rows.csv` of a folder, as inputs by name.

    A column has an input's name: a text input's holds the text, an image's the path of a file, a tensor's that of a `.npy`, both
    relative to the file's folder. An empty cell is an input that the row lacks. Other columns, such as `label`, are not read.
    Raises ValueError that names the first cell that cannot be used, OSError for a CSV file that cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    kinds = {spec.name: spec.kind for spec in ensemble.inputs}
    found, table = _read_table(file)
    columns = [name for name in kinds if name in found]
    if not columns:
        raise ValueError(f"{file}: found the columns {str(found)[:300]}; allowed: at least one of the inputs {list(kinds)}.")
    rows = [_read_row(file, number, {name: cells[name] for name in columns}, kinds) for number, cells in enumerate(table, 1)]
    if not rows:
        raise ValueError(f"{file}: found no row; allowed: at least one.")
    return rows


def make_rows(ensemble: ensemble_pb2.Ensemble, count: int, image_size: int, seed: int = 0) -> list[dict[str, Value]]:
    """Return `count` random rows that have every input; the same seed makes the same ones.

    Images are JPEGs of `image_size` x `image_size` pixels, texts are words, floats are normal, whole numbers 0 or 1.
    """
    draw = numpy.random.default_rng(seed)
    return [{spec.name: _make(spec, image_size, draw) for spec in ensemble.inputs} for _ in range(count)]


def _read_table(file: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    if file.exists() and not file.is_file():  # a pipe that nobody writes to would have no end
        raise ValueError(f"{file}: found what is no file; allowed: a CSV file.")
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            table = csv.DictReader(lines)
            return list(table.fieldnames or ()), list(table)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read: {error}.") from None


def _read_row(file: Path, number: int, cells: Mapping[str, str | None], kinds: Mapping[str, str]) -> dict[str, Value]:
    row: dict[str, Value] = {}
    for name, cell in cells.items():
        if not cell:
            continue
        try:
            row[name] = cell if kinds[name] == "text" else _read_file(file.parent / cell, kinds[name])
        except Exception as error:  # numpy raises anything that a damaged file makes it
            raise ValueError(f"{file}, row {number}, column {name!r}: found {cell[:60]!r}, which cannot be read: {error}") from None
    if not row:
        raise ValueError(f"{file}, row {number}: found no input at all; allowed: at least one cell that is not empty.")
    return row


def _read_file(path: Path, kind: str) -> Value:
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    loaded: Value = path.read_bytes() if kind == "image" else numpy.load(path, allow_pickle=False)
    return loaded


def _make(spec: ensemble_pb2.InputSpec, image_size: int, draw: numpy.random.Generator) -> Value:
    if spec.kind == "image":
        return _image(image_size, spec.shape[-1] if spec.shape else 3, draw)
    if spec.kind == "text":
        texts = [_text(spec.max_tokens, draw) for _ in range(2 if spec.pair else min(COMPARED, max(1, spec.max_samples)))]
        return texts if len(texts) > 1 else texts[0]
    shape = [size if size >= 0 else FREE_SIZE for size in spec.shape]
    name = next(name for name, number in DTYPES.items() if number == spec.dtype)
    values = draw.standard_normal(shape) if "float" in name else draw.integers(0, 2, shape)
    return values.astype(name)


def _text(max_tokens: int, draw: numpy.random.Generator) -> str:
    """Return words, of a token or somewhat more each: half of what fits at the most, so that none is cut."""
    return " ".join(draw.choice(WORDS, draw.integers(1, max(1, max_tokens // 2), endpoint=True)))


def _image(size: int, channels: int, draw: numpy.random.Generator) -> bytes:
    edge = -(-size // GRAIN) + 1
    coarse = draw.integers(0, 256, (edge, edge) if channels == 1 else (edge, edge, 3), dtype=numpy.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()

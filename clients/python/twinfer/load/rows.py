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
    relative to the file's folder and inside it. An empty cell is an input that the row lacks. Other columns, such as `label`, are
    not read.
    Raises ValueError that names the first cell that cannot be used, OSError for a CSV file that cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    kinds = {spec.name: spec.kind for spec in ensemble.inputs}
    if file.exists() and not file.is_file():  # a pipe that nothing writes to would have no end
        raise ValueError(f"{file}: found what is no file; allowed: a CSV file.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            columns, *table = [cells for cells in csv.reader(lines, strict=True) if cells] or [[]]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: it cannot be read: {error}.") from None
    if not set(columns) & set(kinds) or len(set(columns)) < len(columns):
        raise ValueError(
            f"{file}: found the columns {str(columns)[:300]}; allowed: at least one of the inputs {list(kinds)}, each once."
        )
    rows = []
    for number, cells in enumerate(table, 1):
        if len(cells) != len(columns):
            raise ValueError(f"{file}, row {number}: found {len(cells)} cells; allowed: {len(columns)}, one for each column.")
        inputs = {name: cell for name, cell in zip(columns, cells, strict=True) if name in kinds}
        rows.append(_read_row(file, number, inputs, kinds))
    if not rows:
        raise ValueError(f"{file}: found no row; allowed: at least one.")
    return rows


def make_rows(ensemble: ensemble_pb2.Ensemble, count: int, image_size: int, seed: int = 0) -> list[dict[str, Value]]:
    """Return `count` random rows that have every input; the same seed makes the same ones.

    Images are JPEGs of `image_size` x `image_size` pixels, texts are words, floats are normal, whole numbers 0 or 1.
    """
    draw = numpy.random.default_rng(seed)
    return [{spec.name: _make(spec, image_size, draw) for spec in ensemble.inputs} for _ in range(count)]


def _read_row(file: Path, number: int, cells: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, Value]:
    row: dict[str, Value] = {}
    for name, cell in cells.items():
        if not cell:
            continue
        try:
            row[name] = cell if kinds[name] == "text" else _read_file(_find_file(file.parent, cell), kinds[name])
        except Exception as error:  # numpy raises anything that a damaged file makes it
            raise ValueError(f"{file}, row {number}, column {name!r}: found {cell[:60]!r}, which cannot be read: {error}") from None
    if not row:
        raise ValueError(f"{file}, row {number}: found no input at all; allowed: at least one cell that is not empty.")
    return row


def _find_file(folder: Path, cell: str) -> Path:
    """Return the path of a file of the folder: what other files hold is not for the table's author to send."""
    path = (folder / cell).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError("it leaves the folder")
    if not path.is_file():
        raise ValueError("no such file")
    return path


def _read_file(path: Path, kind: str) -> Value:
    if kind == "image":
        return path.read_bytes()
    with path.open("rb") as file:
        array: numpy.ndarray = numpy.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.name not in DTYPES:
        raise ValueError(f"it holds {array.dtype}; allowed: an array of {', '.join(DTYPES)}")
    return array


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

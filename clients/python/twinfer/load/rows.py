"""Rows from a file: a `rows.csv` with a column for each input, as `twinfer fit` reads it, and the files that it names."""

import csv
from collections.abc import Mapping
from pathlib import Path

from twinfer.inputs import Value
from twinfer.v1 import ensemble_pb2

FILE = "rows.csv"


def read_rows(path: Path, ensemble: ensemble_pb2.Ensemble) -> list[dict[str, Value]]:
    """Read every row of a CSV file, or of the `rows.csv` of a folder.

    A column has an input's name: a text input's holds the text, an image's the path of a file, a tensor's that of a `.npy`, both
    relative to the file's folder. An empty cell is an input that the row lacks. Other columns, such as `label`, are not looked at.
    Raises ValueError that names the first cell that cannot be used, OSError for a CSV file that cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    kinds = {spec.name: spec.kind for spec in ensemble.inputs}
    with file.open(newline="", encoding="utf-8") as lines:
        table = csv.DictReader(lines)
        columns = [name for name in kinds if name in (table.fieldnames or ())]
        if not columns:
            raise ValueError(f"{file}: found the columns {table.fieldnames}; allowed: at least one of the inputs {list(kinds)}.")
        rows = [_read_row(file, number, {name: cells[name] for name in columns}, kinds) for number, cells in enumerate(table, 1)]
    if not rows:
        raise ValueError(f"{file}: found no row; allowed: at least one.")
    return rows


def _read_row(file: Path, number: int, cells: Mapping[str, str | None], kinds: Mapping[str, str]) -> dict[str, Value]:
    row: dict[str, Value] = {}
    for name, cell in cells.items():
        if not cell:
            continue
        try:
            row[name] = cell if kinds[name] == "text" else _read_file(file.parent / cell, kinds[name])
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file}, row {number}, column {name!r}: found {cell[:60]!r}, which cannot be read: {error}") from None
    if not row:
        raise ValueError(f"{file}, row {number}: found no input at all; allowed: at least one cell that is not empty.")
    return row


def _read_file(path: Path, kind: str) -> Value:
    import numpy

    loaded: Value = path.read_bytes() if kind == "image" else numpy.load(path, allow_pickle=False)
    return loaded

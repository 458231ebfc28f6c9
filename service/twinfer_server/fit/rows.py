"""The labelled rows that a fusion is fitted to, and judged on: a `rows.csv` or `rows.parquet`, and the files it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import quote
from ..spec import EnsembleSpec, LeavesFolder, find_file
from ..types import RawInput

if TYPE_CHECKING:
    import polars as pl

FILES = ("rows.csv", "rows.parquet")
LABEL = "label"


class InvalidRows(Exception):
    """Labelled rows that cannot be used: says file, row, column, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows and their truth.

    `inputs` has, by row, what it brings: by input name a text, or the path of a file. `numbers` are the rows' places in `file`,
    from 1. `targets` is bool [rows, classes]: one class of each row for classification, any number of them for multi_label.
    """

    file: Path
    numbers: tuple[int, ...]
    inputs: tuple[Mapping[str, str | Path], ...]
    targets: NDArray[np.bool_]

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.numbers)

    def pick(self, places: Sequence[int]) -> "LabelledRows":
        """Give the rows at these places, from 0."""
        numbers, inputs = (tuple(values[place] for place in places) for values in (self.numbers, self.inputs))
        return LabelledRows(self.file, numbers, inputs, self.targets[list(places)])  # type: ignore[arg-type]

    def read(self, place: int, kinds: Mapping[str, str]) -> dict[str, RawInput]:
        """Read what the row at this place brings; `kinds` says, by input name, what a file holds. Raises InvalidRows."""
        read: dict[str, RawInput] = {}
        for name, value in self.inputs[place].items():
            if not isinstance(value, Path):
                read[name] = value
            elif kinds[name] == "image":
                read[name] = value.read_bytes()
            else:
                try:
                    read[name] = np.load(value, allow_pickle=False)
                except (ValueError, EOFError, OSError) as error:
                    raise self.fault(place, name, f"{quote(value.name)}, which NumPy cannot read: {error}", "a .npy") from None
        return read

    def fault(self, place: int, column: str, found: str, allowed: str) -> InvalidRows:
        """Say what is wrong with a cell of the row at this place."""
        return fault(self.file, self.numbers[place], column, found, allowed)


def fault(file: Path, number: int, column: str, found: str, allowed: str) -> InvalidRows:
    """Say what is wrong with one cell."""
    return InvalidRows(f"{file}, row {number}, column {quote(column)}: found {found}; allowed: {allowed}")


def read_rows(folder: Path, spec: EnsembleSpec, labels: Sequence[str], classes: int) -> LabelledRows:
    """Read the rows of `folder`; raises InvalidRows that names the first cell that cannot be used.

    A column has an input's name: a text input's holds the text, an image's the path of a file, a tensor's that of a `.npy`, both
    relative to `folder`. An empty cell is an input that the row does not have. `label` holds a label's name, or its index; for
    multi_label any number of them, with spaces or `|` between. Other columns are not looked at.
    """
    file = next((path for path in (folder / name for name in FILES) if path.is_file()), None)
    if file is None:
        raise InvalidRows(f"{folder}: found neither of {', '.join(FILES)}; allowed: a folder with one of them")
    table = _read_table(file)
    kinds = spec.input_kinds()
    columns = [name for name in kinds if name in table.columns]
    if LABEL not in table.columns or not columns:
        raise InvalidRows(
            f"{file}: found the columns {table.columns}; allowed: {LABEL!r}, and at least one of the inputs {list(kinds)}"
        )
    if not len(table):
        raise InvalidRows(f"{file}: found no row; allowed: at least one")
    inputs, targets = [], np.zeros((len(table), classes), dtype=np.bool_)
    reader = _LabelReader(file, labels, classes, spec.task == "multi_label")
    for number, cells in enumerate(table.iter_rows(named=True), start=1):
        row = {name: _read_cell(file, number, name, kinds[name], cells[name], folder) for name in columns}
        present = {name: value for name, value in row.items() if value is not None}
        if not present:
            raise fault(file, number, columns[0], "no input at all", "at least one cell that is not empty")
        inputs.append(present)
        targets[number - 1, reader.read(number, cells[LABEL])] = True
    return LabelledRows(file, tuple(range(1, len(table) + 1)), tuple(inputs), targets)


def _read_table(file: Path) -> "pl.DataFrame":
    import polars as pl

    try:
        return pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidRows(f"{file}: cannot be read: {str(error).splitlines()[0]}") from None


def _read_cell(file: Path, number: int, name: str, kind: str, cell: Any, folder: Path) -> str | Path | None:
    """Give a text, or the path of a file of `folder`; None where the row lacks the input."""
    if cell is None or cell == "":
        return None
    if not isinstance(cell, str):
        raise fault(file, number, name, f"a {type(cell).__name__}", "a text" if kind == "text" else "a path")
    if kind == "text":
        return cell
    try:
        return find_file(folder, cell)
    except ValueError as error:
        wrong = "leaves the folder" if isinstance(error, LeavesFolder) else "is no file"
        raise fault(file, number, name, f"{quote(cell)}, which {wrong}", f"a file of {folder}") from None


@dataclass(frozen=True, slots=True)
class _LabelReader:
    """Turns a label cell into the indexes of classes."""

    file: Path
    labels: Sequence[str]
    classes: int
    is_multi_label: bool

    def read(self, number: int, cell: Any) -> list[int]:
        words = self._split(cell)
        if not self.is_multi_label and len(words) != 1:
            raise self._fault(number, cell)
        return [self._find(number, word) for word in words]

    def _split(self, cell: Any) -> list[str]:
        if isinstance(cell, list):
            return [str(word) for word in cell]
        text = "" if cell is None else str(cell).strip()
        if not self.is_multi_label or text in self.labels:
            return [text] if text else []
        return [word.strip() for word in (text.split("|") if "|" in text else text.split()) if word.strip()]

    def _find(self, number: int, word: str) -> int:
        if word in self.labels:
            return self.labels.index(word)
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) < self.classes):
            raise self._fault(number, word)
        return int(word)

    def _fault(self, number: int, found: Any) -> InvalidRows:
        several = ", several with spaces or | between" if self.is_multi_label else ""
        names = ", ".join([*map(repr, self.labels[:10]), *(["..."] if len(self.labels) > 10 else [])])
        allowed = f"an index of 0 to {self.classes - 1}" + (f", or one of {names}" if names else "") + several
        return fault(self.file, number, LABEL, "nothing" if found is None or found == "" else quote(found), allowed)

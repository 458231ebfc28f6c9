"""Labelled rows to fit a fusion to and to judge it on: a `rows.csv`, and the files that it names."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import quote
from ..spec import EnsembleSpec, LeavesFolder, find_file
from ..types import RawInput

FILE = "rows.csv"
LABEL = "label"
MIN_ROWS = 20
"""Fewer on either side say nothing."""


class InvalidRows(RuntimeError):
    """Labelled rows that cannot be used: names file, row, column, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows and their labels.

    `numbers` are the rows' numbers in `file`, from 1. `inputs` holds, by row and input name, a text or the path of a file.
    `targets` is bool [rows, classes]: one class of each row for classification, any number of labels for multi_label.
    """

    file: Path
    numbers: tuple[int, ...]
    inputs: tuple[Mapping[str, str | Path], ...]
    targets: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    def pick(self, indexes: Sequence[int]) -> "LabelledRows":
        """Return the rows with these indexes, from 0."""
        numbers, inputs = (tuple(values[index] for index in indexes) for values in (self.numbers, self.inputs))
        return LabelledRows(self.file, numbers, inputs, self.targets[list(indexes)])  # type: ignore[arg-type]

    def read(self, index: int, kinds: Mapping[str, str]) -> dict[str, RawInput]:
        """Read the inputs of one row; `kinds` holds, by input name, the kind of its input. Raises InvalidRows."""
        read: dict[str, RawInput] = {}
        for name, value in self.inputs[index].items():
            try:
                if isinstance(value, str):
                    read[name] = value
                else:
                    read[name] = value.read_bytes() if kinds[name] == "image" else np.load(value, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                found = f"{quote(Path(value).name)}, which cannot be read: {error}"
                allowed = "an image" if kinds[name] == "image" else "a .npy"
                raise _fault(self.file, self.numbers[index], name, found, allowed) from None
        return read


def read_rows(folder: Path, spec: EnsembleSpec, labels: Sequence[str], classes: int) -> LabelledRows:
    """Read the rows of `folder`; raises InvalidRows that names the first cell that cannot be used.

    A column has an input's name: a text input's holds the text, an image's the path of a file, a tensor's that of a `.npy`, both
    relative to `folder`. An empty cell is an input that the row does not have. `label` holds a label's name, or its index; for
    multi_label any number of them, with spaces or `|` between. Other columns are not looked at.
    """
    file = folder / FILE
    columns, table = _read_table(file)
    kinds = spec.input_kinds()
    used = [name for name in kinds if name in columns]
    if LABEL not in columns or not used:
        raise InvalidRows(f"{file}: found the columns {columns}; allowed: {LABEL!r}, and at least one of the inputs {list(kinds)}")
    if not table:
        raise InvalidRows(f"{file}: found no row; allowed: at least one")
    is_multi_label = spec.task == "multi_label"
    indexes = {str(index): index for index in range(classes)} | dict(zip(labels, range(classes), strict=False))
    inputs, targets = [], np.zeros((len(table), classes), dtype=np.bool_)
    for number, cells in enumerate(table, start=1):
        if None in cells:
            found = f"{len(columns) + len(cells[None])} cells"
            raise InvalidRows(f"{file}, row {number}: found {found}; allowed: {len(columns)}, one for each column")
        row = {name: _read_cell(file, number, name, kinds[name], cells[name]) for name in used if cells[name]}
        if not row:
            raise _fault(file, number, used[0], "no input at all", "at least one cell that is not empty")
        inputs.append(row)
        try:
            targets[number - 1, _find_classes(cells[LABEL], indexes, is_multi_label)] = True
        except KeyError as error:
            found = quote(error.args[0]) if error.args[0] else "nothing"
            raise _fault(file, number, LABEL, found, _describe_labels(labels, classes, is_multi_label)) from None
    return LabelledRows(file, tuple(range(1, len(table) + 1)), tuple(inputs), targets)


def split_rows(rows: LabelledRows, seed: int) -> tuple[LabelledRows, LabelledRows]:
    """Split rows into halves, to fit to and to judge on, drawn by `seed` and stratified; raises InvalidRows."""
    half = deal_folds(rows.targets, 2, seed)
    fitting, held_out = (check_count(rows.pick(np.flatnonzero(half == number).tolist())) for number in (0, 1))
    return fitting, held_out


def check_count(rows: LabelledRows) -> LabelledRows:
    """Return the rows if they are enough to fit to, or to judge on; raises InvalidRows."""
    if len(rows) < MIN_ROWS:
        raise InvalidRows(f"{rows.file}: found {len(rows)} rows to fit to or to judge on; allowed: at least {MIN_ROWS} for each")
    return rows


def deal_folds(targets: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.intp]:
    """Return each row's fold, int [rows], drawn by `seed`: every fold has as many rows of each set of labels, give or take one."""
    order = np.random.default_rng(seed).permutation(len(targets))
    _, kinds = np.unique(targets[order], axis=0, return_inverse=True)
    dealt = order[np.argsort(kinds, kind="stable")]
    fold = np.empty(len(targets), dtype=np.intp)
    fold[dealt] = np.arange(len(targets)) % folds
    return fold


def _read_table(file: Path) -> tuple[list[str], list[dict[str | None, str]]]:
    """Read columns and rows; cells beyond the columns stand under None, as the csv module has it."""
    if not file.is_file():
        raise InvalidRows(f"{file.parent}: found no {FILE}; allowed: a folder with one")
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines, restval="", strict=True)
            return list(table.fieldnames or ()), list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidRows(f"{file}: cannot be read: {error}") from None


def _read_cell(file: Path, number: int, name: str, kind: str, cell: str) -> str | Path:
    """Return a text, or the path of a file beside the rows."""
    if kind == "text":
        return cell
    try:
        return find_file(file.parent, cell)
    except ValueError as error:
        wrong = "leaves the folder" if isinstance(error, LeavesFolder) else "is no file"
        raise _fault(file, number, name, f"{quote(cell)}, which {wrong}", f"a file of {file.parent}") from None


def _find_classes(cell: str, indexes: Mapping[str, int], is_multi_label: bool) -> list[int]:
    """Return the indexes of the classes that a cell names; raises KeyError with the word that names none."""
    words = [cell.strip()]
    if is_multi_label and words[0] not in indexes:
        words = [word for part in (cell.split("|") if "|" in cell else cell.split()) if (word := part.strip())]
    return [indexes[word] for word in words]


def _describe_labels(labels: Sequence[str], classes: int, is_multi_label: bool) -> str:
    names = ", ".join([*map(repr, labels[:10]), *(["..."] if len(labels) > 10 else [])])
    several = ", several with spaces or | between" if is_multi_label else ""
    return f"an index of 0 to {classes - 1}" + (f", or one of {names}" if names else "") + several


def _fault(file: Path, number: int, column: str, found: str, allowed: str) -> InvalidRows:
    return InvalidRows(f"{file}, row {number}, column {quote(column)}: found {found}; allowed: {allowed}")

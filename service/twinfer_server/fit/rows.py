"""Labelled rows to fit a fusion to and to judge it on: a `rows.csv`, and the files that it names."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import outline, quote
from ..spec import EnsembleSpec, LeavesFolder, find_file
from ..types import RawInput
from .scores import Flags

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
    numbers: Sequence[int]
    inputs: Sequence[Mapping[str, str | Path]]
    targets: Flags

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    def pick(self, indexes: Sequence[int]) -> "LabelledRows":
        """Return the rows with these indexes, from 0."""
        numbers, inputs = [self.numbers[index] for index in indexes], [self.inputs[index] for index in indexes]
        return LabelledRows(self.file, numbers, inputs, self.targets[list(indexes)])

    def read(self, index: int, kinds: Mapping[str, str]) -> dict[str, RawInput]:
        """Read the inputs of one row; `kinds` holds, by input name, the kind of its input. Raises InvalidRows."""
        read: dict[str, RawInput] = {}
        for name, value in self.inputs[index].items():
            is_image = kinds[name] == "image"
            try:
                if isinstance(value, str):
                    read[name] = value
                else:
                    read[name] = value.read_bytes() if is_image else np.load(value, allow_pickle=False)
            except Exception as error:  # numpy raises anything that a damaged file makes it
                found = f"{quote(Path(value).name)}, which cannot be read: {outline(error)}"
                raise _fault(self.file, self.numbers[index], name, found, "an image" if is_image else "a .npy") from None
        return read


def read_halves(
    data: Path, heldout: Path | None, seed: int, spec: EnsembleSpec, labels: Sequence[str], classes: int
) -> tuple[LabelledRows, LabelledRows]:  # fmt: skip
    """Read the rows to fit to and those to judge on; without `heldout` halves of `data`, drawn by `seed` and stratified.

    Raises InvalidRows.
    """
    fitting = read_rows(data, spec, labels, classes)
    if heldout is None:
        half = deal_folds(fitting.targets, 2, seed)
        fitting, held_out = (fitting.pick(np.flatnonzero(half == number).tolist()) for number in (0, 1))
    else:
        held_out = read_rows(heldout, spec, labels, classes)
        if fitting.file.samefile(held_out.file):
            raise InvalidRows(f"--heldout: found {fitting.file}, which is fitted to; allowed: other rows, or none to split these")
    for rows in (fitting, held_out):
        if len(rows) < MIN_ROWS:
            raise InvalidRows(
                f"{rows.file}: found {len(rows)} rows to fit to or to judge on; allowed: at least {MIN_ROWS} for each"
            )
    return fitting, held_out


def read_rows(folder: Path, spec: EnsembleSpec, labels: Sequence[str], classes: int) -> LabelledRows:
    """Read the rows of `folder`; raises InvalidRows that names the first cell that cannot be used.

    A column has an input's name: a text input's holds the text, an image's the path of a file, a tensor's that of a `.npy`, both
    relative to `folder`. An empty cell is an input that the row does not have. `label` holds a label's name, or its index; for
    multi_label any number of them, with spaces or `|` between. Other columns are not looked at.
    """
    file, kinds, is_multi_label = folder / "rows.csv", spec.input_kinds(), spec.task == "multi_label"
    columns, table = _read_table(file)
    used = [name for name in kinds if name in columns]
    if "label" not in columns or not used:
        raise InvalidRows(
            f"{file}: found the columns {quote(columns, 300)[1:-1]}; allowed: 'label', and at least one of the inputs {list(kinds)}"
        )
    if not table:
        raise InvalidRows(f"{file}: found no row; allowed: at least one")
    indexes = {str(index): index for index in range(classes)} | dict(zip(labels, range(classes), strict=False))
    inputs, targets = [], np.zeros((len(table), classes), dtype=np.bool_)
    for number, cells in enumerate(table, start=1):
        if None in cells:
            found = len(columns) + len(cells[None])
            raise InvalidRows(f"{file}, row {number}: found {found} cells; allowed: {len(columns)}, one for each column")
        row = {name: _read_cell(file, number, name, kinds[name], cells[name]) for name in used if cells[name]}
        if not row:
            raise _fault(file, number, used[0], "no input at all", "at least one cell that is not empty")
        inputs.append(row)
        for word in _split_labels(cells["label"], indexes, is_multi_label):
            if word not in indexes:
                names = ", or one of " + ", ".join([*map(repr, labels[:10]), *(["..."] if len(labels) > 10 else [])])
                allowed = f"an index of 0 to {classes - 1}" + (names if labels else "")
                allowed += ", several with spaces or | between" if is_multi_label else ""
                raise _fault(file, number, "label", quote(word) if word else "nothing", allowed)
            targets[number - 1, indexes[word]] = True
    return LabelledRows(file, range(1, len(table) + 1), inputs, targets)


def deal_folds(targets: Flags, folds: int, seed: int) -> NDArray[np.intp]:
    """Return each row's fold, int [rows], drawn by `seed`: every fold has as many rows of each set of labels, give or take one."""
    order = np.random.default_rng(seed).permutation(len(targets))
    _, kinds = np.unique(targets[order], axis=0, return_inverse=True)
    fold = np.empty(len(targets), dtype=np.intp)
    fold[order[np.argsort(kinds, kind="stable")]] = np.arange(len(targets)) % folds
    return fold


def _read_table(file: Path) -> tuple[list[str], list[dict[str | None, str]]]:
    """Read columns and rows; cells beyond the columns stand under None, as the csv module has it."""
    if not file.is_file():
        raise InvalidRows(f"{file.parent}: found no {file.name}; allowed: a folder with one")
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines, restval="", strict=True)
            return list(table.fieldnames or ()), list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidRows(f"{file}: cannot be read: {outline(error)}") from None


def _read_cell(file: Path, number: int, name: str, kind: str, cell: str) -> str | Path:
    """Return a text, or the path of a file beside the rows."""
    try:
        return cell if kind == "text" else find_file(file.parent, cell)
    except ValueError as error:
        wrong = "leaves the folder" if isinstance(error, LeavesFolder) else "is no file"
        raise _fault(file, number, name, f"{quote(cell)}, which {wrong}", f"a file of {file.parent}") from None


def _split_labels(cell: str, known: Mapping[str, int], is_multi_label: bool) -> list[str]:
    """Split a cell into labels; one that is itself a label, or of a task with one label for each row, is not split."""
    whole = cell.strip()
    if whole in known or not is_multi_label:
        return [whole]
    return [word for part in (cell.split("|") if "|" in cell else cell.split()) if (word := part.strip())]


def _fault(file: Path, number: int, column: str, found: str, allowed: str) -> InvalidRows:
    return InvalidRows(f"{file}, row {number}, column {quote(column)}: found {found}; allowed: {allowed}")

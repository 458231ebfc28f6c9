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
from .labels import Cell, InvalidRows, read_targets
from .scores import Flags

MIN_ROWS = 20
"""Fewer on either side say nothing."""


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
                elif is_image:
                    read[name] = value.read_bytes()
                else:
                    with value.open("rb") as file:
                        read[name] = np.lib.format.read_array(file, allow_pickle=False)
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
    fitting, *judging = read_tables([data] if heldout is None else [data, heldout], spec, labels, classes)
    if heldout is None:
        half = deal_folds(fitting.targets, 2, seed)
        fitting, held_out = (fitting.pick(np.flatnonzero(half == number).tolist()) for number in (0, 1))
    else:
        [held_out] = judging
        if fitting.file.samefile(held_out.file):
            raise InvalidRows(f"--heldout: found {fitting.file}, which is fitted to; allowed: other rows, or none to split these")
    for rows in (fitting, held_out):
        if len(rows) < MIN_ROWS:
            raise InvalidRows(
                f"{rows.file}: found {len(rows)} rows to fit to or to judge on; allowed: at least {MIN_ROWS} for each"
            )
    return fitting, held_out


def read_rows(folder: Path, spec: EnsembleSpec, labels: Sequence[str], classes: int) -> LabelledRows:
    """Read the rows of one folder; see `read_tables`."""
    [rows] = read_tables([folder], spec, labels, classes)
    return rows


def read_tables(folders: Sequence[Path], spec: EnsembleSpec, labels: Sequence[str], classes: int) -> list[LabelledRows]:
    """Read the rows of each folder; raises InvalidRows that names the first cell that cannot be used.

    A column has an input's name: a text input's holds the text, an image's the path of a file, a tensor's that of a `.npy`, both
    relative to its folder. An empty cell is an input that the row does not have. `label` is read by `read_targets`, in all folders
    alike. Other columns are not looked at.
    """
    tables = [_read_table(folder / "rows.csv", list(spec.input_kinds())) for folder in folders]
    cells = [Cell(file, number, row["label"]) for file, table in tables for number, row in enumerate(table, start=1)]
    targets = read_targets(cells, labels, classes, spec.task == "multi_label")
    found = []
    for file, table in tables:
        inputs = [_read_inputs(file, number, row, spec.input_kinds()) for number, row in enumerate(table, start=1)]
        found.append(LabelledRows(file, range(1, len(table) + 1), inputs, targets[: len(table)]))
        targets = targets[len(table) :]
    return found


def deal_folds(targets: Flags, folds: int, seed: int) -> NDArray[np.intp]:
    """Return each row's fold, int [rows], drawn by `seed`: every fold has as many rows of each set of labels, give or take one."""
    order = np.random.default_rng(seed).permutation(len(targets))
    _, kinds = np.unique(targets[order], axis=0, return_inverse=True)
    fold = np.empty(len(targets), dtype=np.intp)
    fold[order[np.argsort(kinds, kind="stable")]] = np.arange(len(targets)) % folds
    return fold


def _read_table(file: Path, inputs: Sequence[str]) -> tuple[Path, list[dict[str, str]]]:
    """Read the rows of a file, by column: `label`, and at least one of `inputs`."""
    if not file.is_file():
        raise InvalidRows(f"{file.parent}: found no {file.name}; allowed: a folder with one")
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            columns, *table = [row for row in csv.reader(lines, strict=True) if row] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidRows(f"{file}: cannot be read: {outline(error)}") from None
    if "label" not in columns or not set(inputs) & set(columns) or len(set(columns)) < len(columns):
        allowed = f"'label', and at least one of the inputs {list(inputs)}, each once"
        raise InvalidRows(f"{file}: found the columns {quote(columns, 300)[1:-1]}; allowed: {allowed}")
    if not table:
        raise InvalidRows(f"{file}: found no row; allowed: at least one")
    for number, cells in enumerate(table, start=1):
        if len(cells) != len(columns):
            raise InvalidRows(f"{file}, row {number}: found {len(cells)} cells; allowed: {len(columns)}, one for each column")
    return file, [dict(zip(columns, cells, strict=True)) for cells in table]


def _read_inputs(file: Path, number: int, row: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, str | Path]:
    inputs = {name: _read_cell(file, number, name, kind, row[name]) for name, kind in kinds.items() if row.get(name)}
    if not inputs:
        raise _fault(
            file, number, next(name for name in kinds if name in row), "no input at all", "at least one cell that is not empty"
        )
    return inputs


def _read_cell(file: Path, number: int, name: str, kind: str, cell: str) -> str | Path:
    """Return a text, or the path of a file beside the rows."""
    try:
        return cell if kind == "text" else find_file(file.parent, cell)
    except ValueError as error:
        wrong = "leaves the folder" if isinstance(error, LeavesFolder) else "is no file"
        raise _fault(file, number, name, f"{quote(cell)}, which {wrong}", f"a file of {file.parent}") from None


def _fault(file: Path, number: int, column: str, found: str, allowed: str) -> InvalidRows:
    return InvalidRows(f"{file}, row {number}, column {quote(column)}: found {found}; allowed: {allowed}")

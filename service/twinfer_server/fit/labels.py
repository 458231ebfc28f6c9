"""The column of labels: names or indexes, decided once for all of its cells."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import quote
from .scores import Flags

SHOWN = 10
"""How many labels an error lists."""


class InvalidRows(RuntimeError):
    """Labelled rows that cannot be used: names file, row, column, what was found and what is allowed."""


class Cell(NamedTuple):
    """One cell of the column `label`, and where it stands."""

    file: Path
    number: int
    text: str

    def refuse(self, found: str, allowed: str) -> InvalidRows:
        """Make the error that names the cell."""
        return InvalidRows(f"{self.file}, row {self.number}, column 'label': found {found}; allowed: {allowed}")


def read_targets(cells: Sequence[Cell], labels: Sequence[str], classes: int, is_multi_label: bool) -> Flags:
    """Return the truth, bool [cells, classes]; raises InvalidRows that names the first cell that contradicts the others.

    All cells hold names of labels, or all hold indexes. A name may look like the index of another class: so they are names where
    every one of them is, and indexes only where none of them names another class than the one with this index. With several
    labels to a cell, all cells are split alike.
    """
    split = _find_split([cell.text.strip() for cell in cells], labels) if is_multi_label else lambda text: [text]
    words = [split(cell.text.strip()) for cell in cells]
    named = {name: index for index, name in enumerate(labels)}
    indexed = {str(index): index for index in range(classes)}
    meaning = _find_meaning(cells, words, named, indexed, is_multi_label)
    targets = np.zeros((len(cells), classes), dtype=np.bool_)
    for row, found in enumerate(words):
        targets[row, [meaning[word] for word in found]] = True
    return targets


def _find_split(texts: Sequence[str], labels: Sequence[str]) -> Callable[[str], list[str]]:
    """Return how every cell is split: not at all, where each is one label as it stands; at bars, where there are any; at spaces."""
    if all(text in labels for text in texts if text):
        return lambda text: [text] if text else []
    if any("|" in text for text in texts):
        return lambda text: [word for part in text.split("|") if (word := part.strip())]
    return str.split


def _find_meaning(
    cells: Sequence[Cell],
    words: Sequence[Sequence[str]],
    named: Mapping[str, int],
    indexed: Mapping[str, int],
    is_multi_label: bool,
) -> Mapping[str, int]:
    """Return what the words of a column mean, names or indexes; raises InvalidRows for the first that the others contradict."""

    def first(is_meant: Callable[[str], bool]) -> Iterator[tuple[Cell, str]]:
        return ((cell, word) for cell, found in zip(cells, words, strict=True) for word in found if is_meant(word))

    unknown = next(first(lambda word: word not in named and word not in indexed), None)
    if unknown is not None:
        cell, word = unknown
        raise cell.refuse(quote(word) if word else "nothing", _describe(named, indexed, is_multi_label))
    no_name = next(first(lambda word: word not in named), None)
    if no_name is None:
        return named
    a_name = next(first(lambda word: word in named and named[word] != indexed.get(word)), None)
    if a_name is None:
        return indexed
    (cell, word), (other, name) = no_name, a_name
    found = f"{quote(word)}, which is an index, where row {other.number} of {other.file.name} has the name {quote(name)}"
    raise cell.refuse(found, f"names in all rows, or indexes in all; {_describe(named, {}, is_multi_label)}")


def _describe(named: Mapping[str, int], indexed: Mapping[str, int], is_multi_label: bool) -> str:
    names = ", ".join([*map(repr, list(named)[:SHOWN]), *(["..."] if len(named) > SHOWN else [])])
    ways = [f"an index of 0 to {len(indexed) - 1}"] * bool(indexed) + [f"one of {names}"] * bool(named)
    return ", or ".join(ways) + (", several with spaces or | between" if is_multi_label else "")

"""The rows: handwritten digits in file order, each with a badly typed number word, split and kept as plain files.

Source of the images: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998, CC BY 4.0, in the copy of its test part that ships inside scikit-learn.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from misspell import WORDS, Rates, badly_typed
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

LABELS = WORDS["english"]

# By file order, so that the split needs no seed. The file appears to go writer by writer, which makes the held-out
# digits harder than a shuffled split would: they come from hands that the vision member has not seen.
TRAIN = range(0, 1000)
FIT = range(1000, 1198)  # kept back for fitting and calibrating the fusion: members must not have trained on them
HELD_OUT = range(1198, 1797)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows: images uint8 [rows, 8, 8], a text for each, and the class number of each, int64 [rows]."""

    images: NDArray[np.uint8]
    texts: list[str]
    labels: NDArray[np.int64]


def load(numbers: range) -> Rows:
    """Take rows from scikit-learn by file order and type a word for each; a row's text depends on its number alone."""
    digits = load_digits()
    labels = digits.target[numbers.start : numbers.stop].astype(np.int64)
    images = (digits.images[numbers.start : numbers.stop] * 15).astype(np.uint8)  # 0..16 becomes 0..240
    texts = [badly_typed(int(digit), f"digits row {row}", Rates()) for row, digit in zip(numbers, labels, strict=True)]
    return Rows(images, texts, labels)


def write(folder: Path, numbers: range) -> None:
    """Keep rows as ``rows.csv`` (image, text, label) and ``images/NUMBER.png``, 8-bit grey."""
    rows = load(numbers)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "text", "label"))
        for number, image, text, label in zip(numbers, rows.images, rows.texts, rows.labels, strict=True):
            path = f"images/{number}.png"
            Image.fromarray(image).save(folder / path)
            table.writerow((path, text, LABELS[label]))


def read(folder: Path) -> Rows:
    """Read back what ``write`` kept, as any user of the folder would: from the files, without scikit-learn's copy."""
    with (folder / "rows.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    images = np.stack([np.asarray(Image.open(folder / row["image"]), dtype=np.uint8) for row in table])
    labels = np.array([LABELS.index(row["label"]) for row in table], dtype=np.int64)
    return Rows(images, [row["text"] for row in table], labels)

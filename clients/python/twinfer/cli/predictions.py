"""Predictions of every task, as text for people."""

import array
from collections.abc import Iterable, Iterator, Sequence

from twinfer.predictions import Prediction

SHOWN = 8
"""Of a vector's numbers, on one line."""
NAMED = 3
"""Of labels and boxes, on one line."""
Table = tuple[list[str], list[list[str]]]
"""The columns' names, and the rows."""


def says(prediction: Prediction) -> str:
    """Return on one line what a prediction comes to."""
    if prediction.classes:
        return f"{prediction.label or prediction.best.index}  {prediction.probability:.4f}"
    if prediction.labels:
        return _best((label.label or label.index, label.probability) for label in prediction.labels)
    if prediction.matches:
        nearest = max(prediction.matches, key=lambda one: one.cosine)
        return f"nearest {nearest.label or nearest.index}  cosine {nearest.cosine:.4f}, probability {nearest.probability:.4f}"
    if prediction.tensor is not None:
        return f"tensor {list(prediction.tensor.shape)}: {_head(array.array('f', prediction.tensor.data))}"
    if prediction.embedding:
        return f"{len(prediction.embedding)} values: {_head(prediction.embedding)}"
    return _best((box.label or box.index, box.score) for box in prediction.boxes) or "no boxes"


def tables(prediction: Prediction) -> Iterator[Table]:
    """Yield the table that shows a prediction whole, where it has one."""
    for title, scored in (("class", prediction.classes), ("label", prediction.labels)):
        if scored:
            yield [title, "probability"], [[one.label or str(one.index), f"{one.probability:.4f}"] for one in scored]
    if prediction.matches:
        rows = [[one.label or str(one.index), f"{one.cosine:.4f}", f"{one.probability:.4f}"] for one in prediction.matches]
        yield ["compared with", "cosine", "probability"], rows
    if prediction.boxes:
        columns = ["class", "score", "x", "y", "to x", "to y"]
        yield columns, [[box.label or str(box.index), *_numbers(box)] for box in prediction.boxes]


def _numbers(box: object) -> Iterable[str]:
    return [f"{getattr(box, name):.4f}" for name in ("score", "x_min", "y_min", "x_max", "y_max")]


def _best(scored: Iterable[tuple[str | int, float]]) -> str:
    named = [f"{name}  {score:.4f}" for name, score in scored]
    return ", ".join(named[:NAMED]) + f", {len(named) - NAMED} more" * (len(named) > NAMED)


def _head(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values[:SHOWN]) + ", ..." * (len(values) > SHOWN)

"""Predictions of every task: from arrays to messages, and from messages to the client's plain values."""

import numpy as np
import pytest
from numpy.typing import NDArray

from twinfer import DetectedBox, Prediction, ScoredClass, ScoredMatch, Tensor
from twinfer.cli.predictions import says, tables
from twinfer_server.rpc.predictions import write_prediction, write_tensor

LABELS = ("ant", "bee", "cat")


def read(task: str, values: object, labels: tuple[str, ...] = LABELS, top_k: int = 0, is_ranked: bool = True) -> Prediction:
    array: NDArray[np.float32] = np.array(values, dtype=np.float32)
    return Prediction.from_message(write_prediction(task, array, labels, top_k, is_ranked=is_ranked))


def test_classes_and_labels_come_best_first_as_many_as_asked_for() -> None:
    best = (ScoredClass(1, "bee", 0.5), ScoredClass(2, "cat", 0.25))
    assert read("classification", [0.125, 0.5, 0.25], top_k=2).classes == best
    assert read("multi_label", [0.125, 0.5, 0.25], top_k=2).labels == best
    assert read("classification", [0.5, 0.5], labels=()).classes == (ScoredClass(0, "", 0.5), ScoredClass(1, "", 0.5))


def test_likenesses_to_the_ensembles_own_texts_come_best_first_with_labels() -> None:
    matches = read("similarity", [[0.5, 0.25], [-0.5, 0.125], [0.75, 0.5]], top_k=2).matches
    assert matches == (ScoredMatch(2, "cat", 0.75, 0.5), ScoredMatch(0, "ant", 0.5, 0.25))


def test_likenesses_to_the_requests_own_texts_come_in_its_order() -> None:
    matches = read("similarity", [[0.5, 0.25], [0.75, 0.5]], top_k=1, is_ranked=False).matches
    assert matches == (ScoredMatch(0, "", 0.5, 0.25), ScoredMatch(1, "", 0.75, 0.5))


def test_boxes_are_those_with_a_score() -> None:
    boxes = read("detection", [[0, 0.25, 0.5, 1, 0.75, 2], [0, 0, 1, 1, 0.5, 7], [0, 0, 0, 0, 0, 0]]).boxes
    assert boxes == (DetectedBox(0, 0.25, 0.5, 1, 0.75, 2, "cat"), DetectedBox(0, 0, 1, 1, 0.5, 7, ""))


def test_vectors_and_tensors_come_as_they_are() -> None:
    assert read("embedding", [0.5, -1.5]).embedding == (0.5, -1.5)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = Tensor((2, 3), values.tobytes())
    assert read("tensor", values).tensor == Prediction.from_message(write_tensor(values)).tensor == expected


SHOWN = {
    "classification": ([0.25, 0.75], "bee  0.7500"),
    "multi_label": ([0.25, 0.75], "bee  0.7500, ant  0.2500"),
    "similarity": ([[0.5, 0.25], [0.75, 0.5]], "nearest bee  cosine 0.7500, probability 0.5000"),
    "detection": ([[0, 0, 1, 1, 0.5, 1]] * 5, "bee  0.5000, bee  0.5000, bee  0.5000, 2 more"),
    "embedding": ([0.5] * 9, "9 values: " + ", ".join(["0.5000"] * 8) + ", ..."),
    "tensor": ([[0.5, 1.0]], "tensor [1, 2]: 0.5000, 1.0000"),
}


@pytest.mark.parametrize("task", SHOWN)
def test_people_are_shown_every_task(task: str) -> None:
    values, text = SHOWN[task]
    prediction = read(task, values)
    assert says(prediction) == text
    for columns, rows in tables(prediction):
        assert all(len(row) == len(columns) for row in rows)
    assert bool(list(tables(prediction))) == (task not in ("embedding", "tensor"))


def test_people_are_told_that_nothing_was_found() -> None:
    assert says(read("detection", [[0, 0, 0, 0, 0, 0]])) == "no boxes"

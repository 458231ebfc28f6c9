"""Predictions of every task: from arrays to messages, and from messages to the client's plain values."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from twinfer import DetectedBox, Prediction, ScoredClass, ScoredMatch, Tensor
from twinfer.cli.predictions import says, tables
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2
from twinfer_server.rpc.responses import write_matches, write_prediction, write_tensor

LABELS = ("ant", "bee", "cat")


def read(task: str, values: object, labels: tuple[str, ...] = LABELS, top_k: int = 0, is_ranked: bool = True) -> Prediction:
    array: NDArray[np.float32] = np.array(values, dtype=np.float32)
    return Prediction.from_message(write(task, array, labels, top_k) if is_ranked else matches_of(array))


def write(task: str, values: NDArray[np.float32], labels: tuple[str, ...], top_k: int) -> ensemble_service_pb2.Prediction:
    message = ensemble_service_pb2.Prediction()
    write_prediction(message, task, values, labels, top_k)
    return message


def matches_of(values: NDArray[np.float32]) -> ensemble_service_pb2.Prediction:
    message = ensemble_service_pb2.Prediction()
    write_matches(message, values)
    return message


def read_tensor(values: NDArray[np.float32]) -> Tensor | None:
    message = ensemble_service_pb2.Prediction()
    write_tensor(message, values)
    return Prediction.from_message(message).tensor


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
    assert read("tensor", values).tensor == read_tensor(values) == expected


# --- whatever the numbers are -------------------------------------------------------------------------------------------

CHANCES = arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32))
PAIRS = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(-1, 1, width=32))
BOXES = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(6)), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
NUMBERS = arrays(np.float32, array_shapes(min_dims=0, max_dims=4, min_side=0), elements=st.floats(width=32, allow_nan=False))


def best_first(values: Sequence[float], top_k: int) -> list[int]:
    """List the places of the best values; of equal ones the first."""
    return sorted(range(len(values)), key=lambda place: -values[place])[: top_k or 5]


@given(values=CHANCES, top_k=st.integers(0, 40))
def test_the_best_classes_and_labels_come_whatever_the_chances(values: NDArray[np.float32], top_k: int) -> None:
    expected = tuple(ScoredClass(place, "", float(values[place])) for place in best_first(values.tolist(), top_k))
    assert read("classification", values, labels=(), top_k=top_k).classes == expected
    assert read("multi_label", values, labels=(), top_k=top_k).labels == expected


@given(values=PAIRS, top_k=st.integers(0, 12))
def test_likenesses_keep_the_requests_order_or_the_best_come_first(values: NDArray[np.float32], top_k: int) -> None:
    matches = tuple(ScoredMatch(place, "", cosine, chance) for place, (cosine, chance) in enumerate(values.tolist()))
    assert read("similarity", values, labels=(), top_k=top_k, is_ranked=False).matches == matches
    best = tuple(matches[place] for place in best_first(values[:, 0].tolist(), top_k))
    assert read("similarity", values, labels=(), top_k=top_k).matches == best


@given(values=BOXES)
def test_no_box_is_lost_or_made_up(values: NDArray[np.float32]) -> None:
    boxes = read("detection", values).boxes
    found = [[box.x_min, box.y_min, box.x_max, box.y_max, box.score, float(box.index)] for box in boxes]
    assert found == [[*box[:5], float(int(box[5]))] for box in values.tolist() if box[4] > 0]


@given(values=NUMBERS)
def test_tensors_of_any_shape_come_as_they_are(values: NDArray[np.float32]) -> None:
    for sent in (values, values.T):  # the latter does not lie row by row
        tensor = read_tensor(sent)
        assert tensor is not None
        assert tensor.shape == sent.shape
        np.testing.assert_array_equal(np.frombuffer(tensor.data, "<f4").reshape(tensor.shape), sent)


# --- shown --------------------------------------------------------------------------------------------------------------

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


def test_no_task_of_the_contract_is_forgotten() -> None:
    assert {f"TASK_{task.upper()}" for task in SHOWN} == set(ensemble_pb2.Task.keys()) - {"TASK_UNSPECIFIED"}
    kinds = {write(task, np.array(values, np.float32), LABELS, 0).WhichOneof("task") for task, (values, _) in SHOWN.items()}
    assert kinds == {field.name for field in ensemble_service_pb2.Prediction.DESCRIPTOR.oneofs_by_name["task"].fields}

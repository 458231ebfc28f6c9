"""When two answers to one request say the same: bits may differ, places of equals may change, anything else is noticed."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinfer.load import Agreement
from twinfer.v1 import ensemble_service_pb2 as pb


def classes(*scored: tuple[int, float]) -> pb.Prediction:
    found = [pb.ScoredClass(index=index, probability=probability) for index, probability in scored]
    return pb.Prediction(classification=pb.Classification(classes=found))


def labels(*scored: tuple[int, float]) -> pb.Prediction:
    found = [pb.ScoredClass(index=index, probability=probability) for index, probability in scored]
    return pb.Prediction(multi_label=pb.MultiLabel(labels=found))


def matches(*scored: tuple[int, float, float]) -> pb.Prediction:
    found = [pb.ScoredMatch(index=index, cosine=cosine, probability=probability) for index, cosine, probability in scored]
    return pb.Prediction(similarity=pb.Similarity(matches=found))


def boxes(*found: tuple[int, float, float]) -> pb.Prediction:
    drawn = [pb.DetectedBox(index=index, score=score, x_min=left, x_max=1.0) for index, score, left in found]
    return pb.Prediction(detections=pb.Detections(boxes=drawn))


def embedding(*values: float) -> pb.Prediction:
    return pb.Prediction(embedding=pb.Embedding(values=values))


def tensor(*values: float) -> pb.Prediction:
    prediction = pb.Prediction()
    prediction.tensor.shape.append(len(values))
    prediction.tensor.data = array("f", values).tobytes()
    return prediction


def agree(first: pb.Prediction, found: pb.Prediction, tolerance: float = 0.01) -> bool:
    agreement = Agreement(tolerance)
    assert agreement.holds(0, pb.InferResponse(prediction=first))
    return agreement.holds(0, pb.InferResponse(prediction=found))


@pytest.mark.parametrize(
    ("first", "found"),
    [
        pytest.param(classes((2, 0.7), (1, 0.3)), classes((2, 0.705), (1, 0.295)), id="probabilities that differ a little"),
        pytest.param(classes((2, 0.501), (1, 0.499)), classes((1, 0.501), (2, 0.499)), id="equals that changed places"),
        pytest.param(classes((2, 0.4), (1, 0.301)), classes((2, 0.4), (3, 0.302)), id="equals of which one is listed"),
        pytest.param(labels((2, 0.9), (1, 0.301)), labels((2, 0.9), (3, 0.302)), id="labels alike"),
        pytest.param(matches((0, 0.5, 0.9), (1, -0.2, 0.1)), matches((0, 0.501, 0.9), (1, -0.201, 0.1)), id="likenesses"),
        pytest.param(boxes((3, 0.9, 0.25)), boxes((3, 0.899, 0.251)), id="a box a little further"),
        pytest.param(boxes(), boxes(), id="no boxes"),
        pytest.param(embedding(200.0, 1.0), embedding(201.5, 2.5), id="a vector, beside its largest number"),
        pytest.param(tensor(200.0, 1.0), tensor(201.5, 2.5), id="a tensor likewise"),
    ],
)
def test_what_says_the_same_agrees(first: pb.Prediction, found: pb.Prediction) -> None:
    assert agree(first, found)


@pytest.mark.parametrize(
    ("first", "found"),
    [
        pytest.param(classes((2, 0.7), (1, 0.3)), classes((2, 0.68), (1, 0.32)), id="probabilities that differ"),
        pytest.param(classes((2, 0.7), (1, 0.3)), classes((1, 0.7), (2, 0.3)), id="another class"),
        pytest.param(classes((2, 0.7), (1, 0.2)), classes((2, 0.7), (3, 0.6)), id="a class that the first has not"),
        pytest.param(classes((2, 0.7), (3, 0.6)), classes((2, 0.7), (1, 0.2)), id="a class that is gone"),
        pytest.param(classes((2, 0.7)), classes((1, 0.7)), id="another class, of one that is listed"),
        pytest.param(classes((2, 0.7), (1, 0.3)), classes((2, 0.7)), id="a class less"),
        pytest.param(classes((2, 0.7)), classes((2, float("nan"))), id="not a number"),
        pytest.param(classes((2, 0.7)), labels((2, 0.7)), id="another task"),
        pytest.param(matches((0, 0.5, 0.9)), matches((0, 0.6, 0.9)), id="another cosine"),
        pytest.param(boxes((3, 0.9, 0.25)), boxes((4, 0.9, 0.25)), id="a box of another class"),
        pytest.param(boxes((3, 0.9, 0.25)), boxes((3, 0.9, 0.25), (3, 0.8, 0.5)), id="a box more"),
        pytest.param(boxes((80, 0.9, 0.25)), boxes((80, 0.9, 0.5)), id="a box of a class of high index elsewhere"),
        pytest.param(embedding(1.0, 0.0), embedding(1.0, 0.02), id="another vector"),
        pytest.param(tensor(1.0, 2.0), tensor(1.0), id="a shorter tensor"),
    ],
)
def test_what_says_something_else_does_not(first: pb.Prediction, found: pb.Prediction) -> None:
    assert not agree(first, found)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), st.floats(0.0, 0.1))
def test_a_vector_agrees_with_itself_and_with_what_is_within_the_tolerance(values: list[float], tolerance: float) -> None:
    largest = max(1.0, *map(abs, values), 1.0)
    assert agree(embedding(*values), embedding(*values), 0.0)
    assert agree(embedding(*values), embedding(*(value + 0.9 * tolerance * largest for value in values)), tolerance + 1e-6)
    assert not agree(embedding(*values), embedding(*(value + (1.1 * tolerance + 1e-3) * largest for value in values)), tolerance)


def test_each_request_and_each_version_has_a_first_answer_of_its_own() -> None:
    agreement, one, other = Agreement(0.01), classes((0, 1.0)), classes((1, 1.0))
    assert agreement.holds(0, pb.InferResponse(prediction=one, fusion_version=1))
    assert agreement.holds(1, pb.InferResponse(prediction=other, fusion_version=1))
    assert agreement.holds(0, pb.InferResponse(prediction=other, fusion_version=2))
    assert agreement.holds(0, pb.InferResponse(prediction=other, version=2))
    assert not agreement.holds(0, pb.InferResponse(prediction=other, fusion_version=1))
    assert not agreement.holds(0, pb.InferResponse(prediction=one, fusion_version=2))

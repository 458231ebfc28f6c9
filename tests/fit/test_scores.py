"""Scores of predictions, against scikit-learn and plain arithmetic, and their intervals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from twinfer_server.fit.scores import BINS, RESAMPLES, SCORES, compare, judge, list_bins, measure, measure_mean, resample


def score(judged: Any) -> dict[str, float]:
    """Give the scores themselves, without their intervals."""
    return {name: interval["value"] for name, interval in measure(judged, seed=0).items()}


def make_rows(count: int, classes: int, seed: int, sharpness: float = 3.0) -> tuple[Any, Any]:
    """Make predictions that are right somewhat more often than not: [rows, classes] and the truth, int [rows]."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) + sharpness * generator.random((count, 1)) * np.eye(classes)[truth]
    exponents = np.exp(logits)
    return exponents / exponents.sum(1, keepdims=True), truth


def plain_ece(confidence: Any, right: Any) -> float:
    """Add up the gaps bin by bin, as Guo et al. 2017 write it down."""
    total = 0.0
    for number in range(BINS):
        inside = (confidence > number / BINS) & (confidence <= (number + 1) / BINS)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@given(count=st.integers(20, 200), classes=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_the_scores_are_those_of_scikit_learn(count: int, classes: int, seed: int) -> None:
    probabilities, truth = make_rows(count, classes, seed)
    targets = np.eye(classes, dtype=np.bool_)[truth]
    found, predicted = score(judge(probabilities, targets, np.ones(count, dtype=np.bool_))), probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert found["nll"] == pytest.approx(reference.log_loss(truth, probabilities, labels=range(classes)))
    assert found["brier"] == pytest.approx(((probabilities - targets) ** 2).sum(1).mean())
    assert found["ece"] == pytest.approx(plain_ece(probabilities.max(1), predicted == truth))


def test_every_label_is_an_answer_of_its_own_where_there_are_several() -> None:
    generator = np.random.default_rng(4)
    probabilities, targets = generator.random((50, 3)), generator.random((50, 3)) < 0.3
    found = score(judge(probabilities, targets, np.ones(50, dtype=np.bool_), is_multi_label=True))
    chances, said = probabilities.ravel(), probabilities.ravel() > 0.5
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(targets.ravel(), said))
    assert found["nll"] == pytest.approx(reference.log_loss(targets.ravel(), chances))
    assert found["brier"] == pytest.approx(2 * reference.brier_score_loss(targets.ravel(), chances))
    assert found["ece"] == pytest.approx(plain_ece(np.maximum(chances, 1 - chances), said == targets.ravel()))


def test_rows_without_an_answer_count_for_nothing() -> None:
    probabilities, truth = make_rows(80, 4, seed=2)
    targets = np.eye(4, dtype=np.bool_)[truth]
    present = np.arange(80) % 3 > 0
    some = judge(np.where(present[:, None], probabilities, np.nan), targets, present)
    alone = judge(probabilities[present], targets[present], present[present])
    assert score(some) == pytest.approx(score(alone))
    assert list_bins(some) == list_bins(alone)


def test_a_probability_of_0_for_the_truth_costs_much_but_not_everything() -> None:
    assert score(judge(np.array([[0.0, 1.0]]), np.array([[True, False]]), np.array([True])))["nll"] == pytest.approx(87.3, abs=0.1)


@pytest.mark.parametrize(("confidence", "place"), [(1 / BINS, 0), (1 / BINS + 1e-9, 1), (0.5, 7), (1.0, BINS - 1)])
def test_a_bin_holds_its_upper_edge(confidence: float, place: int) -> None:
    rest = np.full((1, 20), (1 - confidence) / 20) if confidence < 0.5 else np.array([[1 - confidence]])
    probabilities = np.concatenate([[[confidence]], rest], axis=1)
    bins = list_bins(judge(probabilities, np.eye(probabilities.shape[1], dtype=np.bool_)[[0]], np.array([True])))
    assert [entry["count"] for entry in bins].index(1) == place
    assert bins[place] == {"count": 1, "confidence": confidence, "accuracy": 1.0}


def test_the_interval_of_an_accuracy_is_that_of_a_binomial() -> None:
    right = np.zeros(400)
    right[:300] = 1
    interval = measure_mean(right, seed=1)
    assert interval["value"] == 0.75
    assert (interval["low"], interval["high"]) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.005)


def test_intervals_are_the_same_for_the_same_seed() -> None:
    probabilities, truth = make_rows(60, 3, seed=5)
    judged = judge(probabilities, np.eye(3, dtype=np.bool_)[truth], np.ones(60, dtype=np.bool_))
    assert measure(judged, 7) == measure(judged, 7)
    assert measure(judged, 7) != measure(judged, 8)
    assert set(measure(judged, 7)) == set(SCORES)


def test_draws_have_as_many_rows_as_there_are() -> None:
    whole = resample(np.eye(30), seed=3)  # how often each row is drawn
    assert whole.shape == (1 + RESAMPLES, 30)
    assert (whole[0] == 1).all()
    assert (whole.sum(1) == 30).all()


def test_a_difference_is_told_more_exactly_than_the_scores_themselves() -> None:
    probabilities, truth = make_rows(300, 3, seed=6)
    better = 0.98 * probabilities + 0.02 * np.eye(3)[truth]
    targets, present = np.eye(3, dtype=np.bool_)[truth], np.ones(300, dtype=np.bool_)
    one, other = judge(better, targets, present), judge(probabilities, targets, present)
    difference, alone = compare(one, other, seed=1)["nll"], measure(one, seed=1)["nll"]
    assert difference["value"] == pytest.approx(score(one)["nll"] - score(other)["nll"])
    assert difference["high"] < 0
    assert difference["high"] - difference["low"] < (alone["high"] - alone["low"]) / 2


def test_a_draw_without_any_row_that_has_an_answer_says_nothing() -> None:
    present = np.array([True, *[False] * 9])
    interval = measure(judge(np.full((10, 2), 0.5), np.eye(2, dtype=np.bool_)[[0] * 10], present), seed=0)["accuracy"]
    assert interval == {"value": 1.0, "low": 1.0, "high": 1.0}

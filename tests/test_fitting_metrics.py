"""Scores of predictions, against scikit-learn and plain arithmetic, and their intervals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as reference

from twinfer_server.fit import metrics
from twinfer_server.fit.metrics import (
    BINS,
    RESAMPLES,
    SCORES,
    compare,
    draw_rows,
    judge,
    mean_interval,
    measure,
    reliability,
    share_interval,
)


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
def test_the_scores_are_those_of_scikit_learn(count: int, classes: int, seed: int) -> None:
    probabilities, truth = make_rows(count, classes, seed)
    targets = np.eye(classes, dtype=np.bool_)[truth]
    scores = judge(probabilities, targets, np.ones(count, dtype=np.bool_)).scores(np.ones((1, count)))
    predicted = probabilities.argmax(1)
    assert scores["accuracy"][0] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert scores["nll"][0] == pytest.approx(reference.log_loss(truth, probabilities, labels=range(classes)))
    assert scores["brier"][0] == pytest.approx(((probabilities - targets) ** 2).sum(1).mean())
    assert scores["ece"][0] == pytest.approx(plain_ece(probabilities.max(1), predicted == truth))


def test_every_label_is_an_answer_of_its_own_where_there_are_several() -> None:
    generator = np.random.default_rng(4)
    probabilities, targets = generator.random((50, 3)), generator.random((50, 3)) < 0.3
    scores = judge(probabilities, targets, np.ones(50, dtype=np.bool_), is_multi_label=True).scores(np.ones((1, 50)))
    chances, said = probabilities.ravel(), probabilities.ravel() > 0.5
    assert scores["accuracy"][0] == pytest.approx(reference.accuracy_score(targets.ravel(), said))
    assert scores["nll"][0] == pytest.approx(reference.log_loss(targets.ravel(), chances))
    assert scores["brier"][0] == pytest.approx(2 * reference.brier_score_loss(targets.ravel(), chances))
    assert scores["ece"][0] == pytest.approx(plain_ece(np.maximum(chances, 1 - chances), said == targets.ravel()))


def test_rows_without_an_answer_count_for_nothing() -> None:
    probabilities, truth = make_rows(80, 4, seed=2)
    targets = np.eye(4, dtype=np.bool_)[truth]
    present = np.arange(80) % 3 > 0
    holes = np.where(present[:, None], probabilities, np.nan)
    some = judge(holes, targets, present).scores(np.ones((1, 80)))
    alone = judge(probabilities[present], targets[present], present[present]).scores(np.ones((1, present.sum())))
    assert {name: values[0] for name, values in some.items()} == pytest.approx({name: values[0] for name, values in alone.items()})


def test_a_probability_of_0_for_the_truth_costs_much_but_not_everything() -> None:
    judgement = judge(np.array([[0.0, 1.0]]), np.array([[True, False]]), np.array([True]))
    assert judgement.sums["nll"][0] == pytest.approx(87.3, abs=0.1)


@pytest.mark.parametrize(("confidence", "place"), [(1 / BINS, 0), (1 / BINS + 1e-9, 1), (0.5, 7), (1.0, BINS - 1)])
def test_a_bin_holds_its_upper_edge(confidence: float, place: int) -> None:
    rest = np.full((1, 20), (1 - confidence) / 20) if confidence < 0.5 else np.array([[1 - confidence]])
    probabilities = np.concatenate([[[confidence]], rest], axis=1)
    bins = reliability(probabilities, np.eye(probabilities.shape[1], dtype=np.bool_)[[0]])
    assert [entry.count for entry in bins].index(1) == place
    assert (bins[place].confidence, bins[place].accuracy) == (confidence, 1.0)


def test_the_interval_of_an_accuracy_is_that_of_a_binomial() -> None:
    right = np.zeros(400)
    right[:300] = 1
    interval = mean_interval(right, seed=1)
    assert interval.value == 0.75
    assert (interval.low, interval.high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.005)


def test_intervals_are_the_same_for_the_same_seed() -> None:
    probabilities, truth = make_rows(60, 3, seed=5)
    judgement = judge(probabilities, np.eye(3, dtype=np.bool_)[truth], np.ones(60, dtype=np.bool_))
    assert measure(judgement, 7) == measure(judgement, 7)
    assert measure(judgement, 7) != measure(judgement, 8)
    assert set(measure(judgement, 7)) == set(SCORES)


def test_draws_have_as_many_rows_as_there_are_and_come_in_blocks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = draw_rows(30, seed=3)
    assert whole.shape == (RESAMPLES, 30)
    assert (whole.sum(1) == 30).all()
    monkeypatch.setattr(metrics, "BLOCK", 30 * 300)
    blocks = list(draw_rows(30, seed=3))
    assert len(blocks) == 7
    assert (np.concatenate(blocks) == whole).all()


def test_a_difference_is_told_more_exactly_than_the_scores_themselves() -> None:
    probabilities, truth = make_rows(300, 3, seed=6)
    better = 0.98 * probabilities + 0.02 * np.eye(3)[truth]
    targets, present = np.eye(3, dtype=np.bool_)[truth], np.ones(300, dtype=np.bool_)
    one, other = judge(better, targets, present), judge(probabilities, targets, present)
    difference, alone = compare(one, other, seed=1)["nll"], measure(one, seed=1)["nll"]
    assert difference.value == pytest.approx(measure(one, 1)["nll"].value - measure(other, 1)["nll"].value)
    assert difference.high < 0
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def test_the_interval_of_a_share_is_that_of_scipy() -> None:
    expected = binomtest(55, 59).proportion_ci(method="wilson")
    found = share_interval(55, 59)
    assert (found.value, found.low, found.high) == pytest.approx((55 / 59, expected.low, expected.high))
    assert share_interval(7, 7).high == 1.0

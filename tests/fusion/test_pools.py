"""The opinion pools and the disagreement against plain float64 NumPy, against published examples, and against their own laws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy, rankdata

from tests.fusions import EQUAL, Example, draw_weights
from twinfer_server.fusion.pools import Pool, log_opinion_pool, maximum, measure_disagreement, reciprocal_rank, weighted_mean

Floats = NDArray[np.float64]
Reference = Callable[[Floats, Floats], Floats]


def reference_maximum(logits: Floats, weights: Floats) -> Floats:
    largest: Floats = softmax(logits, axis=-1).max(0)
    return np.asarray(largest / largest.sum())


POOLS: dict[Pool, Reference] = {
    weighted_mean: lambda logits, weights: np.asarray(weights @ softmax(logits, axis=-1) / weights.sum()),
    log_opinion_pool: lambda logits, weights: np.asarray(softmax(weights @ logits)),
    maximum: reference_maximum,
}
every_pool = pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)


@dataclass(frozen=True)
class Case:
    """Logits [members, requests, classes], NaN in every absent part; weights [requests, members] that say who is absent."""

    logits: torch.Tensor
    weights: torch.Tensor

    @property
    def tolerance(self) -> float:
        """What rounding the logits to fp32 may cost, relative to a probability: their own last digit, a few times."""
        return 1e-6 + 8 * float(np.finfo(np.float32).eps) * float(self.logits.nan_to_num(0.0).abs().max())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    members, requests, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 11))
    largest = draw(st.sampled_from([1.0, 30.0, 1e4]))
    logits = draw(arrays.arrays(np.float32, (members, requests, classes), elements=st.floats(-largest, largest, width=32)))
    weights = draw_weights(draw(st.data()), requests, members)
    logits[weights.numpy().T == 0] = np.nan
    return Case(torch.from_numpy(logits), weights)


@every_pool
@given(case=cases())
def test_equals_the_plain_reference_over_the_present_members(pool: Pool, case: Case) -> None:
    found = pool(case.logits, case.weights).exp().numpy()
    logits, weights = case.logits.double().numpy(), case.weights.double().numpy()
    for request, shares in enumerate(weights):
        present = shares > 0
        uniform = np.full(logits.shape[-1], 1 / logits.shape[-1])
        expected = POOLS[pool](logits[present, request], shares[present]) if present.any() else uniform
        np.testing.assert_allclose(found[request], expected, rtol=case.tolerance, atol=1e-7)


@every_pool
@given(case=cases(), data=st.data())
def test_neither_the_order_nor_the_neighbours_matter(pool: Pool, case: Case, data: st.DataObject) -> None:
    members, requests, _ = case.logits.shape
    expected = pool(case.logits, case.weights)
    order, member_order = data.draw(st.permutations(range(requests))), data.draw(st.permutations(range(members)))
    found = pool(case.logits[member_order][:, order], case.weights[order][:, member_order])
    torch.testing.assert_close(found.exp(), expected[order].exp(), rtol=case.tolerance, atol=1e-7)
    alone = [pool(case.logits[:, at : at + 1], case.weights[at : at + 1]) for at in range(requests)]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-6, atol=1e-6)


@every_pool
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e38])
def test_what_lies_in_an_absent_members_part_never_shows(pool: Pool, garbage: float) -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0]], [[garbage] * 3]])
    expected = torch.tensor([[1.0, 2.0, 3.0]]).log_softmax(-1)
    torch.testing.assert_close(pool(logits, torch.tensor([[1.0, 0.0]])), expected)


@every_pool
@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        pytest.param([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], softmax([0.0, 1.0, 2.0]), id="members that agree are repeated"),
        pytest.param([1e4, -1e4, 0.0], [1e4, 0.0, -1e4], [1.0, 0.0, 0.0], id="huge logits do not overflow"),
        pytest.param([-math.inf, 0.0, 0.0], [-math.inf, 0.0, 0.0], [0.0, 0.5, 0.5], id="a class that all rule out stays out"),
    ],
)
def test_every_pool_keeps_what_the_members_share(pool: Pool, left: list[float], right: list[float], expected: list[float]) -> None:
    pooled = pool(torch.tensor([[left], [right]]), EQUAL)
    assert pooled.isfinite().all() or -math.inf in left
    np.testing.assert_allclose(pooled.exp().numpy(), [expected], rtol=1.3e-6, atol=1e-5)


@given(data=st.data(), requests=st.integers(1, 4), members=st.integers(1, 3), classes=st.integers(2, 6), k=st.floats(0.5, 100))
def test_reciprocal_ranks_equal_the_plain_reference(
    data: st.DataObject, requests: int, members: int, classes: int, k: float
) -> None:
    few_values = st.integers(-4, 4).map(float)  # so that many are equal
    logits = data.draw(arrays.arrays(np.float32, (members, requests, classes), elements=few_values))
    weights = draw_weights(data, requests, members)
    ranks = rankdata(-logits.astype(np.float64), method="ordinal", axis=-1)
    logits[weights.numpy().T == 0] = np.nan
    found = reciprocal_rank(torch.from_numpy(logits), weights, k).exp().numpy()
    for request, shares in enumerate(weights.double().numpy()):
        scores = (shares[:, None] / (k + ranks[:, request])).sum(0)
        expected = scores / scores.sum() if shares.any() else np.full(classes, 1 / classes)
        np.testing.assert_allclose(found[request], expected, rtol=1e-5)
    order = data.draw(st.permutations(range(requests)))
    permuted = reciprocal_rank(torch.from_numpy(logits[:, order]), weights[order], k).exp().numpy()
    np.testing.assert_allclose(permuted, found[order], rtol=1e-6)


@pytest.mark.parametrize(("options", "k"), [({}, 60.0), ({"k": 1.0}, 1.0)], ids=["60 by default", "as the file says"])
def test_the_constant_is_the_files(options: dict[str, float], k: float) -> None:
    logits, weights = [torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[2.0, 3.0, 1.0]])], torch.tensor([[0.75, 0.25]])
    fused = Example("reciprocal_rank", "classification", ((3,), (3,)), options=options).fuse(logits, weights)
    torch.testing.assert_close(fused.prediction, reciprocal_rank(torch.stack(logits), weights, k).exp())


def test_the_mean_keeps_probabilities_too_small_for_fp32() -> None:
    pooled = weighted_mean(torch.tensor([[[0.0, -200.0]], [[0.0, -300.0]]]), EQUAL)
    torch.testing.assert_close(pooled, torch.tensor([[0.0, math.log(0.5) - 200.0]]))


LOGITS = st.floats(-30, 30, width=32)


@given(data=st.data(), requests=st.integers(1, 5), members=st.integers(1, 4), classes=st.integers(2, 11))
def test_the_disagreement_equals_the_plain_reference(data: st.DataObject, requests: int, members: int, classes: int) -> None:
    logits = data.draw(arrays.arrays(np.float32, (members, requests, classes), elements=LOGITS))
    weights = draw_weights(data, requests, members)
    logits[weights.numpy().T == 0] = np.nan
    found = measure_disagreement(torch.from_numpy(logits), weights)
    for request, shares in enumerate(weights.double().numpy()):
        kept = np.flatnonzero(shares)
        if len(kept) < 2:
            assert math.isnan(found[request])
            continue
        share, chances = shares[kept], softmax(logits[kept, request].astype(np.float64), axis=-1)
        divergence = entropy(share @ chances) - share @ entropy(chances, axis=-1)
        assert 0 <= found[request] <= 1
        assert found[request].item() == pytest.approx(divergence / entropy(share), abs=1e-5)
    order, member_order = data.draw(st.permutations(range(requests))), data.draw(st.permutations(range(members)))
    permuted = measure_disagreement(torch.from_numpy(logits[member_order][:, order]), weights[order][:, member_order])
    torch.testing.assert_close(permuted, found[order], equal_nan=True, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("chances", "weights", "expected"),
    [
        pytest.param([[1, 0, 0], [0, 1, 0]], [0.5, 0.5], 1.0, id="SciPy's example of two certainties is 1"),
        pytest.param([[1, 0], [0.5, 0.5]], [0.5, 0.5], 0.46450140402245893**2 / math.log(2), id="SciPy's second example"),
        pytest.param([[0.2, 0.8], [0.2, 0.8]], [0.5, 0.5], 0.0, id="the same distribution is 0"),
        pytest.param([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.2, 0.3, 0.5], 1.0, id="three certainties are 1 by any weight"),
        pytest.param([[1, 0], [0, 1]], [0.999999, 0.000001], 1.0, id="a tiny weight does not blur two certainties"),
        pytest.param([[0.3, 0.7], [0.3, 0.7]], [0.999999, 0.000001], 0.0, id="a tiny weight does not blur agreement"),
        pytest.param([[1, 0], [0, 1]], [1.0, 0.0], math.nan, id="one member with weight cannot disagree"),
        pytest.param([[0.3, 0.7], [0.3, 0.7]], [1.0, 1e-30], math.nan, id="a weight below all rounding is no weight"),
        pytest.param([[1, 0], [0, 1]], [0.0, 0.0], math.nan, id="no member cannot disagree"),
        pytest.param([[1, 0]], [1.0], math.nan, id="an ensemble of one cannot disagree"),
    ],
)
def test_known_disagreements(chances: list[list[float]], weights: list[float], expected: float) -> None:
    found = measure_disagreement(torch.tensor(chances).log().unsqueeze(1), torch.tensor([weights])).item()
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)

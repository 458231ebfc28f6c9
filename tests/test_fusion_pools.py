"""The opinion pools against plain float64 NumPy, against published examples, and against their own laws."""

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

from twinfer_server.fusion import log_opinion_pool, maximum, weighted_mean
from twinfer_server.fusion.pool import Pool

"""A busy machine is no failure: torch's first calls and a neighbour's load outlast any deadline."""

Floats = NDArray[np.float64]
Reference = Callable[[Floats, Floats], Floats]


def reference_weighted_mean(logits: Floats, weights: Floats) -> Floats:
    mean: Floats = sum(weight * softmax(row) for row, weight in zip(logits, weights, strict=True))
    normalised: Floats = mean / mean.sum()
    return normalised


def reference_log_opinion_pool(logits: Floats, weights: Floats) -> Floats:
    pooled: Floats = softmax(weights @ logits)
    return pooled


def reference_maximum(logits: Floats, weights: Floats) -> Floats:
    largest: Floats = softmax(logits, axis=-1).max(0)
    normalised: Floats = largest / largest.sum()
    return normalised


POOLS: dict[Pool, Reference] = {
    weighted_mean: reference_weighted_mean,
    log_opinion_pool: reference_log_opinion_pool,
    maximum: reference_maximum,
}
every_pool = pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)


@dataclass(frozen=True)
class Case:
    """Logits [members, rows, classes], NaN in every absent slot; weights [rows, members] that say who is absent."""

    logits: torch.Tensor
    weights: torch.Tensor

    @property
    def tolerance(self) -> float:
        """What rounding the logits to fp32 may cost, relative to a probability: their own last digit, a few times."""
        return 1e-6 + 8 * float(np.finfo(np.float32).eps) * float(self.logits.nan_to_num(0.0).abs().max())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    members, rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 11))
    largest = draw(st.sampled_from([1.0, 30.0, 1e4]))
    elements = st.floats(-largest, largest, width=32)
    logits = draw(arrays.arrays(np.float32, (members, rows, classes), elements=elements))
    shares = draw(arrays.arrays(np.float32, (rows, members), elements=st.floats(0.0009765625, 1, width=32)))
    shares *= draw(arrays.arrays(np.bool_, (rows, members)))
    weights = (shares / np.maximum(shares.sum(-1, keepdims=True), np.finfo(np.float32).tiny)).astype(np.float32)
    logits[weights.T == 0] = np.nan
    return Case(torch.from_numpy(logits), torch.from_numpy(weights))


@every_pool
@given(case=cases())
def test_equals_the_plain_reference_over_the_present_members(pool: Pool, case: Case) -> None:
    found = pool(case.logits, case.weights).exp().numpy()
    logits, weights = case.logits.double().numpy(), case.weights.double().numpy()
    for row, shares in enumerate(weights):
        present = shares > 0
        classes = logits.shape[-1]
        uniform = np.full(classes, 1 / classes)
        expected = POOLS[pool](logits[present, row], shares[present]) if present.any() else uniform
        np.testing.assert_allclose(found[row], expected, rtol=case.tolerance, atol=1e-7)


@every_pool
@given(case=cases(), data=st.data())
def test_the_order_of_rows_and_members_does_not_matter(pool: Pool, case: Case, data: st.DataObject) -> None:
    members, rows, _ = case.logits.shape
    row_order = data.draw(st.permutations(range(rows)))
    member_order = data.draw(st.permutations(range(members)))
    found = pool(case.logits[member_order][:, row_order], case.weights[row_order][:, member_order])
    expected = pool(case.logits, case.weights)[row_order]
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=case.tolerance, atol=1e-7)


@every_pool
@given(case=cases())
def test_a_row_alone_is_the_same_as_in_a_batch(pool: Pool, case: Case) -> None:
    together = pool(case.logits, case.weights)
    alone = [pool(case.logits[:, row : row + 1], case.weights[row : row + 1]) for row in range(len(case.weights))]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-6, atol=1e-6)


@every_pool
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e38])
def test_what_lies_in_an_absent_members_slot_never_shows(pool: Pool, garbage: float) -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0]], [[garbage] * 3]])
    expected = torch.tensor([[1.0, 2.0, 3.0]]).log_softmax(-1)
    torch.testing.assert_close(pool(logits, torch.tensor([[1.0, 0.0]])), expected)


@every_pool
def test_members_that_agree_are_repeated(pool: Pool) -> None:
    logits = torch.tensor([[[0.1, 2.0, -3.0, 4.0]]])
    pooled = pool(logits.expand(2, 1, 4), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(pooled, logits[0].log_softmax(-1))


@every_pool
def test_huge_logits_neither_overflow_nor_lose_the_answer(pool: Pool) -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0]], [[1e4, 0.0, -1e4]]])
    pooled = pool(logits, torch.tensor([[0.5, 0.5]]))
    assert pooled.isfinite().all()
    torch.testing.assert_close(pooled.exp(), torch.tensor([[1.0, 0.0, 0.0]]))


@every_pool
def test_a_class_that_everybody_rules_out_stays_out(pool: Pool) -> None:
    logits = torch.tensor([[[-math.inf, 0.0, 0.0]], [[-math.inf, 0.0, 0.0]]])
    pooled = pool(logits, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(pooled.exp(), torch.tensor([[0.0, 0.5, 0.5]]))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        pytest.param(weighted_mean, [0.495, 0.01, 0.495], id="the mean keeps both first choices"),
        pytest.param(log_opinion_pool, [0.0, 1.0, 0.0], id="the product is certain of what neither believes"),
        pytest.param(maximum, [0.99 / 1.99, 0.01 / 1.99, 0.99 / 1.99], id="the maximum keeps both first choices"),
    ],
)
def test_zadehs_two_doctors(pool: Pool, expected: list[float]) -> None:
    """Two doctors, each sure of another diagnosis, agree that the third has one chance in a hundred (Zadeh 1984)."""
    logits = torch.tensor([[[0.99, 0.01, 0.0]], [[0.0, 0.01, 0.99]]]).log()
    torch.testing.assert_close(pool(logits, torch.tensor([[0.5, 0.5]])).exp(), torch.tensor([expected]))


@given(case=cases())
def test_equal_weights_in_the_log_pool_are_the_mean_of_the_logits(case: Case) -> None:
    logits = case.logits.nan_to_num(0.0)
    members, rows, _ = logits.shape
    pooled = log_opinion_pool(logits, torch.full((rows, members), 1 / members))
    expected = logits.double().mean(0).softmax(-1).float()
    torch.testing.assert_close(pooled.exp(), expected, rtol=case.tolerance, atol=1e-7)


@given(case=cases())
def test_weights_of_one_in_the_log_pool_are_the_product_of_experts(case: Case) -> None:
    logits = case.logits.nan_to_num(0.0).clamp(-5, 5)
    members, rows, _ = logits.shape
    product = logits.double().softmax(-1).prod(0)
    pooled = log_opinion_pool(logits, torch.ones(rows, members))
    expected = (product / product.sum(-1, keepdim=True)).float()
    torch.testing.assert_close(pooled.exp(), expected, rtol=1e-4, atol=1e-7)


def test_the_mean_keeps_probabilities_too_small_for_fp32() -> None:
    logits = torch.tensor([[[0.0, -200.0]], [[0.0, -300.0]]])
    pooled = weighted_mean(logits, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(pooled, torch.tensor([[0.0, math.log(0.5) - 200.0]]))


def test_the_maximum_asks_only_who_has_weight() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    lopsided = maximum(logits, torch.tensor([[0.9, 0.1]]).expand(3, 2))
    torch.testing.assert_close(lopsided, maximum(logits, torch.full((3, 2), 0.5)))

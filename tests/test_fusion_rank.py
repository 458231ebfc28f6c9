"""Reciprocal rank fusion: places count, beliefs do not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import rankdata

from tests.fusions import Example
from twinfer_server.fusion import Fused, reciprocal_rank, renormalise

LOGITS = st.integers(-4, 4).map(float)
"""So few values that many are equal."""


@given(data=st.data(), rows=st.integers(1, 4), members=st.integers(1, 3), classes=st.integers(2, 6), k=st.floats(0.5, 100))
def test_equals_the_plain_reference_over_the_present_members(
    data: st.DataObject, rows: int, members: int, classes: int, k: float
) -> None:
    logits = data.draw(arrays.arrays(np.float32, (members, rows, classes), elements=LOGITS))
    shares = data.draw(arrays.arrays(np.float32, (rows, members), elements=st.floats(0.0009765625, 1, width=32)))
    present = data.draw(arrays.arrays(np.bool_, (rows, members)))
    weights = renormalise(torch.from_numpy(shares), torch.from_numpy(present))
    ranks = rankdata(-logits.astype(np.float64), method="ordinal", axis=-1)
    logits[~present.T] = np.nan
    found = reciprocal_rank(torch.from_numpy(logits), weights, k).exp().numpy()
    for row in range(rows):
        scores = sum((weights[row, m].item() / (k + ranks[m, row]) for m in range(members)), np.zeros(classes))
        expected = scores / scores.sum() if present[row].any() else np.full(classes, 1 / classes)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)

    order = data.draw(st.permutations(range(rows)))
    permuted = reciprocal_rank(torch.from_numpy(logits[:, order]), weights[order], k).exp().numpy()
    np.testing.assert_allclose(permuted, found[order], rtol=1e-6)


def test_a_first_and_a_third_place_against_two_seconds() -> None:
    """1/61 + 1/63 is a little more than 2/62: the formula of Cormack, Clarke & Büttcher 2009 with its k of 60."""
    logits = torch.tensor([[[3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0]]])
    scores = [1 / 61 + 1 / 63, 2 / 62, 1 / 63 + 1 / 61]
    expected = torch.tensor([[score / math.fsum(scores) for score in scores]])
    torch.testing.assert_close(reciprocal_rank(logits, torch.tensor([[0.5, 0.5]])).exp(), expected)


def test_of_equals_the_first_ranks_first() -> None:
    found = reciprocal_rank(torch.zeros(1, 1, 3), torch.ones(1, 1), k=1.0).exp()
    torch.testing.assert_close(found, torch.tensor([[6.0, 4.0, 3.0]]) / 13)


@pytest.mark.parametrize(("options", "k"), [({}, 60.0), ({"k": 1.0}, 1.0)], ids=["60 by default", "as the file says"])
def test_the_constant_is_the_files(options: dict[str, float], k: float) -> None:
    logits = [torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[2.0, 3.0, 1.0]])]
    fusion = Example("reciprocal_rank", "classification", ((3,), (3,)), options=options).build()
    fused: Fused = fusion(logits, torch.tensor([[0.75, 0.25]]), torch.tensor([[1, 1]]))
    torch.testing.assert_close(fused.prediction, reciprocal_rank(torch.stack(logits), torch.tensor([[0.75, 0.25]]), k).exp())

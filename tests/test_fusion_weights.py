"""Renormalising: who is absent weighs 0, who is present shares the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from twinfer_server.fusion import renormalise

"""A busy machine is no failure: torch's first calls and a neighbour's load outlast any deadline."""


@pytest.mark.parametrize(
    ("weights", "present", "expected"),
    [
        pytest.param([0.5, 0.3, 0.2], [True, True, True], [0.5, 0.3, 0.2], id="nobody absent changes nothing"),
        pytest.param([0.5, 0.3, 0.2], [True, False, True], [5 / 7, 0.0, 2 / 7], id="the rest keeps its proportion"),
        pytest.param([1.0, 0.0], [False, True], [0.0, 1.0], id="all weight on an absent member goes to the present one"),
        pytest.param([1.0, 0.0, 0.0], [False, True, True], [0.0, 0.5, 0.5], id="members that all weigh 0 share equally"),
        pytest.param([0.0, 1.0], [True, True], [0.0, 1.0], id="a member that weighs 0 gains nothing from company"),
        pytest.param([3.0, 1.0], [True, True], [0.75, 0.25], id="weights that sum to more than 1 are scaled"),
        pytest.param([0.5, 0.5], [False, False], [0.0, 0.0], id="nobody present leaves a row of zeros"),
        pytest.param([1e-42, 0.0], [True, True], [0.5, 0.5], id="weights too small to divide by count as 0"),
    ],
)
def test_renormalise(weights: list[float], present: list[bool], expected: list[float]) -> None:
    shares = renormalise(torch.tensor([weights]), torch.tensor([present]))
    torch.testing.assert_close(shares, torch.tensor([expected]))


SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 5))


@given(st.data(), SHAPES)
def test_rows_sum_to_one_and_the_absent_weigh_exactly_zero(data: st.DataObject, shape: tuple[int, int]) -> None:
    weights = data.draw(arrays.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    present = data.draw(arrays.arrays(np.bool_, shape))
    shares = renormalise(torch.from_numpy(weights), torch.from_numpy(present)).numpy()
    assert not shares[~present].any()
    np.testing.assert_allclose(shares.sum(-1), present.any(-1), rtol=1e-6)

"""Concatenation: the cosine of two fused vectors is the weighted mean of the members' cosines."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from twinfer_server.fusion import concatenation, renormalise

"""A busy machine is no failure: torch's first calls and a neighbour's load outlast any deadline."""

FEATURES = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 0.01)


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def draw_weights(data: st.DataObject, rows: int, members: int) -> torch.Tensor:
    weights = data.draw(arrays.arrays(np.float32, (rows, members), elements=st.floats(0.015625, 1, width=32)))
    present = data.draw(arrays.arrays(np.bool_, (rows, members)))
    return renormalise(torch.from_numpy(weights), torch.from_numpy(present))


@given(st.data(), st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_equals_the_plain_reference_over_the_present_members(data: st.DataObject, rows: int, sizes: list[int]) -> None:
    embeddings = [data.draw(arrays.arrays(np.float32, (rows, size), elements=FEATURES)) for size in sizes]
    weights = draw_weights(data, rows, len(sizes))
    expected = np.zeros((rows, sum(sizes)))
    for row in range(rows):
        parts = [math.sqrt(weights[row, m]) * unit(one[row].astype(np.float64)) for m, one in enumerate(embeddings)]
        expected[row] = np.concatenate(parts)
    for member, embedding in enumerate(embeddings):
        embedding[weights[:, member].numpy() == 0] = np.nan
    fused = concatenation([torch.from_numpy(one) for one in embeddings], weights)
    np.testing.assert_allclose(fused.numpy(), expected, atol=1e-6)

    order = data.draw(st.permutations(range(rows)))
    permuted = concatenation([torch.from_numpy(one[order]) for one in embeddings], weights[order])
    torch.testing.assert_close(permuted, fused[order])


@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_the_cosine_is_the_weighted_mean_of_the_members_cosines(data: st.DataObject, sizes: list[int]) -> None:
    vectors = arrays.arrays(np.float32, 2 * sum(sizes), elements=st.floats(0.25, 100, width=32))
    embeddings = list(torch.from_numpy(data.draw(vectors)).reshape(2, -1).split(sizes, dim=-1))
    weights = draw_weights(data, 1, len(sizes)).expand(2, -1)
    fused = concatenation(embeddings, weights)
    cosines = torch.stack([torch.cosine_similarity(one[0], one[1], dim=0) for one in embeddings])
    torch.testing.assert_close(fused[0] @ fused[1], weights[0] @ cosines, atol=1e-6, rtol=1e-5)
    length = float(weights[0].sum() > 0)
    torch.testing.assert_close(fused.norm(dim=-1), torch.full((2,), length))


@pytest.mark.parametrize("size", [1e-25, 1e25], ids=["squares that underflow", "squares that overflow"])
def test_the_length_survives(size: float) -> None:
    fused = concatenation([torch.tensor([[3.0, 4.0]]) * size], torch.ones(1, 1))
    torch.testing.assert_close(fused, torch.tensor([[0.6, 0.8]]))


def test_a_zero_vector_has_no_direction_and_adds_nothing() -> None:
    fused = concatenation([torch.zeros(1, 2), torch.tensor([[0.0, 7.0]])], torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(fused, torch.tensor([[0.0, 0.0, 0.0, 0.5]]))

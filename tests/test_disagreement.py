"""The disagreement: Lin's generalised Jensen-Shannon divergence, divided by its bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from twinfer_server.fusion import measure_disagreement, renormalise

"""A busy machine is no failure: torch's first calls and a neighbour's load outlast any deadline."""

EQUAL = torch.tensor([[0.5, 0.5]])
LOGITS = st.floats(-30, 30, width=32)


def disagree(beliefs: list[list[float]], weights: list[float]) -> float:
    """Measure one row, from the members' probabilities."""
    logits = torch.tensor(beliefs).log().unsqueeze(1)
    return measure_disagreement(logits, torch.tensor([weights])).item()


@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.integers(2, 11))
def test_equals_the_plain_reference_over_the_present_members(data: st.DataObject, rows: int, members: int, classes: int) -> None:
    logits = data.draw(arrays.arrays(np.float32, (members, rows, classes), elements=LOGITS))
    shares = data.draw(arrays.arrays(np.float32, (rows, members), elements=st.floats(0.0009765625, 1, width=32)))
    present = data.draw(arrays.arrays(np.bool_, (rows, members)))
    weights = renormalise(torch.from_numpy(shares), torch.from_numpy(present))
    logits[~present.T] = np.nan
    found = measure_disagreement(torch.from_numpy(logits), weights)

    for row in range(rows):
        kept = np.flatnonzero(present[row])
        if len(kept) < 2:
            assert math.isnan(found[row])
            continue
        share = weights[row].double().numpy()[kept]
        beliefs = softmax(logits[kept, row].astype(np.float64), axis=-1)
        divergence = entropy(share @ beliefs) - share @ entropy(beliefs, axis=-1)
        assert 0 <= found[row] <= 1
        assert found[row].item() == pytest.approx(divergence / entropy(share), abs=1e-5)

    order = data.draw(st.permutations(range(rows)))
    permuted = measure_disagreement(torch.from_numpy(logits[:, order]), weights[order])
    torch.testing.assert_close(permuted, found[order], equal_nan=True)
    order = data.draw(st.permutations(range(members)))
    permuted = measure_disagreement(torch.from_numpy(logits[order]), weights[:, order])
    torch.testing.assert_close(permuted, found, equal_nan=True, atol=1e-6, rtol=1e-6)


@given(arrays.arrays(np.float32, (2, 7), elements=LOGITS))
def test_for_two_equal_weights_it_is_the_divergence_in_bits(
    logits: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> None:
    beliefs = softmax(logits.astype(np.float64), axis=-1)
    assume(np.abs(beliefs[0] - beliefs[1]).max() > 1e-6)  # nearer, and SciPy takes the root of a negative rounding error
    expected = jensenshannon(beliefs[0], beliefs[1], base=2) ** 2
    found = measure_disagreement(torch.from_numpy(logits).unsqueeze(1), EQUAL).item()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("beliefs", "weights", "expected"),
    [
        pytest.param([[1, 0, 0], [0, 1, 0]], [0.5, 0.5], 1.0, id="SciPy's example of two certainties is 1"),
        pytest.param([[1, 0], [0.5, 0.5]], [0.5, 0.5], 0.46450140402245893**2 / math.log(2), id="SciPy's second example"),
        pytest.param([[0.2, 0.8], [0.2, 0.8]], [0.5, 0.5], 0.0, id="the same belief is 0"),
        pytest.param([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.2, 0.3, 0.5], 1.0, id="three certainties are 1 by any weight"),
        pytest.param([[1, 0], [0, 1]], [0.999999, 0.000001], 1.0, id="a tiny weight does not blur two certainties"),
        pytest.param([[0.3, 0.7], [0.3, 0.7]], [0.999999, 0.000001], 0.0, id="a tiny weight does not blur agreement"),
        pytest.param([[1, 0], [0, 1]], [1.0, 0.0], math.nan, id="one member with weight cannot disagree"),
        pytest.param([[0.3, 0.7], [0.3, 0.7]], [1.0, 1e-30], math.nan, id="a weight below all rounding is no weight"),
        pytest.param([[1, 0], [0, 1]], [0.0, 0.0], math.nan, id="nobody cannot disagree"),
        pytest.param([[1, 0]], [1.0], math.nan, id="an ensemble of one cannot disagree"),
    ],
)
def test_known_values(beliefs: list[list[float]], weights: list[float], expected: float) -> None:
    assert disagree(beliefs, weights) == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(arrays.arrays(np.float32, (3, 1, 5), elements=st.floats(-1e4, 1e4, width=32)))
def test_it_stays_within_0_and_1_for_any_logits(logits: np.ndarray[tuple[int, int, int], np.dtype[np.float32]]) -> None:
    found = measure_disagreement(torch.from_numpy(logits), torch.tensor([[0.6, 0.3, 0.1]])).item()
    assert 0 <= found <= 1

"""The gate of a cascade: what each saves and costs, and which is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinfer_server.fit.fit import CascadeRows, choose_gate, trace_curve

ROWS = CascadeRows(confidence=np.array([0.9, 0.5, 0.8, 0.7, 0.6]), losses=np.array([0.0, 1.0, 0.0, 1.0, -1.0]), accuracy=0.8)


def test_the_curve_lists_what_each_gate_saves_and_costs() -> None:
    expected = [(1.0, 0.0, 0.0), (0.85, 0.2, 0.0), (0.75, 0.4, 0.0), (0.65, 0.6, 0.2), (0.55, 0.8, 0.0), (0.25, 1.0, 0.2)]
    assert trace_curve(ROWS) == pytest.approx(np.array(expected))


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9, 1.0]), st.sampled_from([-1.0, 0.0, 1.0])), min_size=1, max_size=30))
def test_every_point_does_what_it_says(values: list[tuple[float, float]]) -> None:
    confidence, losses = np.array(values).T
    curve = trace_curve(CascadeRows(confidence, losses, 1.0))
    for gate, saving, loss in curve:
        assert saving == pytest.approx((confidence >= gate).mean())
        assert loss == pytest.approx(np.where(confidence >= gate, losses, 0.0).mean())
    assert curve[-1, 1] == 1.0
    assert (np.diff(curve[:, 1]) > 0).all()


@pytest.mark.parametrize(
    ("saving", "tolerance", "gate"),
    [
        pytest.param(0.5, 0.0, 0.65, id="the strictest gate that saves half"),
        pytest.param(0.4, 0.0, 0.75, id="exactly as much as wanted"),
        pytest.param(None, 0.1, 0.75, id="the last gate before more is lost, though a later one loses less"),
        pytest.param(None, 0.2, 0.25, id="all, where so much may be lost"),
        pytest.param(0.0, 0.0, 1.0, id="nothing need be saved"),
    ],
)
def test_the_gate_is_chosen_by_what_is_wanted(saving: float | None, tolerance: float, gate: float) -> None:
    assert choose_gate(trace_curve(ROWS), saving, tolerance)[0] == pytest.approx(gate)


def test_where_every_gate_loses_too_much_no_answer_stands_alone() -> None:
    rows = CascadeRows(np.array([1.0, 0.8]), np.array([1.0, 1.0]), 1.0)
    assert choose_gate(trace_curve(rows), None, 0.005).tolist() == [1.0, 0.0, 0.0]

"""The gate of a cascade: what each saves and costs, and which is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinfer_server.fit.cascade import CascadePoint, CascadeRows, find_gate, trace_curve

ROWS = CascadeRows(
    confidence=np.array([0.9, 0.5, 0.8, 0.7, 0.6]),
    first_right=np.array([True, False, True, False, True]),
    fused_right=np.array([True, True, True, True, False]),
)


def test_the_curve_lists_what_each_gate_saves_and_costs() -> None:
    found = [(round(point.gate, 3), point.saving, point.loss) for point in trace_curve(ROWS)]
    assert found == [(1.0, 0.0, 0.0), (0.85, 0.2, 0.0), (0.75, 0.4, 0.0), (0.65, 0.6, 0.2), (0.55, 0.8, 0.0), (0.25, 1.0, 0.2)]


@given(
    values=st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9, 1.0]), st.booleans(), st.booleans()), min_size=1, max_size=30)
)
def test_every_point_does_what_it_says(values: list[tuple[float, bool, bool]]) -> None:
    confidence, first, fused = (np.array(column) for column in zip(*values, strict=True))
    rows = CascadeRows(confidence, first, fused)
    curve = trace_curve(rows)
    for point in curve:
        assert point.saving == pytest.approx((confidence >= point.gate).mean())
        assert point.loss == pytest.approx(rows.losses(point.gate).mean())
    assert curve[-1].saving == 1.0
    assert [point.saving for point in curve] == sorted(point.saving for point in curve)


@pytest.mark.parametrize(
    ("saving", "tolerance", "gate"),
    [
        pytest.param(0.5, None, 0.65, id="the strictest gate that saves half"),
        pytest.param(0.4, None, 0.75, id="exactly as much as wanted"),
        pytest.param(None, 0.1, 0.75, id="the last gate before more is lost, though a later one loses less"),
        pytest.param(None, 0.2, 0.25, id="all, where so much may be lost"),
        pytest.param(0.0, None, 1.0, id="nothing need be saved"),
    ],
)
def test_the_gate_is_chosen_by_what_is_wanted(saving: float | None, tolerance: float | None, gate: float) -> None:
    assert find_gate(trace_curve(ROWS), saving, tolerance).gate == pytest.approx(gate)


def test_where_every_gate_loses_too_much_no_answer_stands_alone() -> None:
    rows = CascadeRows(np.array([0.9, 0.8]), np.array([False, False]), np.array([True, True]))
    assert find_gate(trace_curve(rows), None, 0.005) == CascadePoint(1.0, 0.0, 0.0)

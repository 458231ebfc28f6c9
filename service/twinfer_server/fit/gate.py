"""The gate of a cascade: from which confidence the first member's answer stands alone, and what that saves and costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class CascadeRows:
    """Rows that every member could look at, as a cascade sees them.

    `confidence` is the first member's calibrated one, float64 [rows]; `first_right` says whether its answer is right, `fused_right`
    whether the fusion of all members is, bool [rows].
    """

    confidence: Floats
    first_right: Flags
    fused_right: Flags

    def sure(self, gate: float) -> Flags:
        """Say which rows the first member answers alone."""
        return self.confidence >= gate

    def losses(self, gate: float) -> Floats:
        """Give what each row loses in accuracy against asking everybody: 1, 0, or -1 where the first member does better."""
        return np.where(self.sure(gate), self.fused_right.astype(np.float64) - self.first_right, 0.0)


@dataclass(frozen=True, slots=True)
class CascadePoint:
    """What a gate does: the share of rows that the others never see, and the accuracy lost with them, as a share of all rows."""

    gate: float
    saving: float
    loss: float


def trace_curve(rows: CascadeRows) -> list[CascadePoint]:
    """List the gates that make a difference, from the strictest to 0, with what each does."""
    order = np.argsort(-rows.confidence, kind="stable")
    confidence = rows.confidence[order]
    lost = np.cumsum(rows.fused_right[order].astype(np.float64) - rows.first_right[order])
    # Rows of one confidence pass a gate together. A gate lies half-way to the next row, so that rounding moves nobody past it.
    ends = np.append(np.flatnonzero(confidence[:-1] != confidence[1:]), len(confidence) - 1)
    gates = (confidence[ends] + np.append(confidence[ends[:-1] + 1], 0.0)) / 2
    strictest = [CascadePoint(1.0, 0.0, 0.0)] if confidence[0] < 1 else []
    shares, losses = (ends + 1) / len(confidence), lost[ends] / len(confidence)
    return strictest + [CascadePoint(*map(float, values)) for values in zip(gates, shares, losses, strict=True)]


def find_gate(curve: Sequence[CascadePoint], saving: float | None, tolerance: float | None) -> CascadePoint:
    """Choose the gate: the strictest one that saves at least `saving`, or the last before more than `tolerance` is lost.

    With `tolerance`, gates below the first that loses more are not looked at: that they seem to lose less is luck.
    """
    if saving is not None:
        return next((point for point in curve if point.saving >= saving), curve[-1])
    chosen = CascadePoint(1.0, 0.0, 0.0)
    for point in curve:
        if tolerance is not None and point.loss > tolerance:
            break
        chosen = point
    return chosen


def thin(curve: Sequence[CascadePoint]) -> list[CascadePoint]:
    """Keep so many points of a curve as a picture can show."""
    places = np.unique(np.linspace(0, len(curve) - 1, min(MAX_POINTS, len(curve))).round().astype(int))
    return [curve[place] for place in places]

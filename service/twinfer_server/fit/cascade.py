"""The gate of a cascade: from which confidence the first member's answer stands alone, and what that saves and costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from .outputs import MemberOutputs, Prediction, ServedFusion
from .rows import InvalidRows
from .scores import Flags, Floats, measure_mean

UNREACHABLE = 2.0
"""A gate that no confidence reaches."""
MAX_POINTS = 400
"""As many points of a curve as a picture can show."""


@dataclass(frozen=True, slots=True)
class CascadeWish:
    """What is wanted of a cascade: `first`, the member that is asked first, by index; and how much is saved, or may be lost."""

    first: int
    saving: float | None
    tolerance: float | None


@dataclass(frozen=True, slots=True)
class CascadeRows:
    """Rows on which a cascade has a choice: they have the first member's inputs, and another's.

    `confidence` is the first member's calibrated one, float64 [rows]; `first_right` says whether its answer is right, `fused_right`
    whether the fusion of all members is, bool [rows].
    """

    confidence: Floats
    first_right: Flags
    fused_right: Flags

    def losses(self, gate: float) -> Floats:
        """Return what each row loses in accuracy against asking all members: 1, 0, or -1 where the first one does better."""
        return np.where(self.confidence >= gate, self.fused_right.astype(np.float64) - self.first_right, 0.0)


@dataclass(frozen=True, slots=True)
class CascadePoint:
    """What a gate does: the share of rows that the other members never see, and the accuracy lost, as a share of all rows."""

    gate: float
    saving: float
    loss: float


def try_cascade(
    served: ServedFusion, wish: CascadeWish, fitting: MemberOutputs, held_out: MemberOutputs, seed: int
) -> tuple[dict[str, Any], Prediction]:  # fmt: skip
    """Choose a gate on the rows that were fitted to; returns what it does, and its answers to the held-out rows.

    Raises InvalidRows where no row has what a cascade needs.
    """
    sets = {
        name: _run(served, wish.first, seen, UNREACHABLE)[0]
        for name, seen in (("fitting rows", fitting), ("held-out rows", held_out))
    }
    first = served.names[wish.first]
    for name, rows in sets.items():
        if not len(rows.confidence):
            raise InvalidRows(f"cascade: found no {name} with the inputs of {first!r} and of another member; allowed: some")
    chosen, rows = find_gate(trace_curve(sets["fitting rows"]), wish.saving, wish.tolerance), sets["held-out rows"]
    found = {
        "first": first,
        "gate": chosen.gate,
        "wanted_saving": wish.saving,
        "tolerated_loss": wish.tolerance,
        "fitting": {"rows": len(sets["fitting rows"].confidence), "saving": chosen.saving, "loss": chosen.loss},
        "held_out": {
            "rows": len(rows.confidence),
            "saving": measure_mean((rows.confidence >= chosen.gate).astype(np.float64), seed),
            "loss": measure_mean(rows.losses(chosen.gate), seed),
        },
        "accuracies": {name: float(rows.fused_right.mean()) for name, rows in sets.items()},
        "curves": {name: _thin(trace_curve(rows)) for name, rows in sets.items()},
    }
    return found, _run(served, wish.first, held_out, chosen.gate)[1]


def trace_curve(rows: CascadeRows) -> list[CascadePoint]:
    """List the gates that make a difference, from the strictest to 0, with what each does."""
    order = np.argsort(-rows.confidence, kind="stable")
    confidence, losses = rows.confidence[order], np.cumsum(rows.losses(0.0)[order])
    # Rows of one confidence pass a gate together. A gate lies half-way to the next row, so that rounding moves no row past it.
    ends = np.append(np.flatnonzero(confidence[:-1] != confidence[1:]), len(confidence) - 1)
    gates = (confidence[ends] + np.append(confidence[ends[:-1] + 1], 0.0)) / 2
    points = np.column_stack([gates, (ends + 1) / len(confidence), losses[ends] / len(confidence)])
    strictest = [CascadePoint(1.0, 0.0, 0.0)] if confidence[0] < 1 else []
    return strictest + [CascadePoint(*point) for point in points.tolist()]


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


def _run(served: ServedFusion, first: int, outputs: MemberOutputs, gate: float) -> tuple[CascadeRows, Prediction]:
    """Return the rows on which a cascade has a choice, and its answers to all rows at `gate`."""
    alone = torch.zeros_like(outputs.present)
    alone[:, first] = outputs.present[:, first]
    fused, single = served.fuse(outputs), served.fuse(replace(outputs, present=alone))
    confidence = served.predict(first, outputs).probabilities.max(-1)
    has_choice = (outputs.present[:, first] & (outputs.present.sum(-1) > 1)).numpy()
    first_right, fused_right = (one.probabilities.argmax(-1) == outputs.targets.argmax(-1) for one in (single, fused))
    stops = (has_choice & (confidence >= gate))[:, None]
    answers = Prediction("cascade", "fusion", True, np.where(stops, single.probabilities, fused.probabilities), fused.present)
    return CascadeRows(confidence[has_choice], first_right[has_choice], fused_right[has_choice]), answers


def _thin(curve: Sequence[CascadePoint]) -> list[dict[str, float]]:
    step = -(-len(curve) // MAX_POINTS)
    return [asdict(point) for point in [*curve[:-1:step], curve[-1]]]

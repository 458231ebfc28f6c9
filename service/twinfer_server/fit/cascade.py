"""A cascade, tried on labelled rows: finding its gate on some, and telling what that saves and costs on others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .gate import CascadePoint, CascadeRows, find_gate, trace_curve
from .metrics import Interval, mean_interval
from .outputs import MemberOutputs
from .prediction import Prediction, ServedFusion


@dataclass(frozen=True, slots=True)
class CascadeWish:
    """What is wanted of a cascade: who is asked first, by index; and either how much is saved, or how much accuracy may be lost."""

    first: int
    saving: float | None
    tolerance: float | None


@dataclass(frozen=True, slots=True)
class CascadeTrial:
    """A gate and what it does: by the name of the rows what is `chosen`, the curves, and how accurate everybody together is.

    `saving` and `loss` are on the held-out rows. `prediction` is what the cascade answers to them.
    """

    wish: CascadeWish
    chosen: Mapping[str, CascadePoint]
    curves: Mapping[str, list[CascadePoint]]
    accuracies: Mapping[str, float]
    rows: Mapping[str, int]
    saving: Interval
    loss: Interval
    prediction: Prediction


def choose_gate(served: ServedFusion, wish: CascadeWish, outputs: MemberOutputs, targets: NDArray[np.bool_]) -> CascadePoint:
    """Choose the gate on the rows that the fusion was fitted to; raises ValueError where no row has what a cascade needs."""
    rows, _ = _look(served, wish.first, outputs, targets)
    if not len(rows.confidence):
        raise ValueError("no row has both the first member's inputs and another's")
    return find_gate(trace_curve(rows), wish.saving, wish.tolerance)


def try_cascade(
    served: ServedFusion,
    wish: CascadeWish,
    chosen: CascadePoint,
    fitting: tuple[MemberOutputs, NDArray[np.bool_]],
    held_out: tuple[MemberOutputs, NDArray[np.bool_]],
    seed: int,
) -> CascadeTrial:
    """Try the chosen gate on the held-out rows; `fitting` and `held_out` are outputs and truth, bool [rows, classes]."""
    sets = {"fitting rows": _look(served, wish.first, *fitting)[0], "held-out rows": _look(served, wish.first, *held_out)[0]}
    rows = sets["held-out rows"]
    _, answers = _look(served, wish.first, *held_out, gate=chosen.gate)
    saving = mean_interval(rows.sure(chosen.gate).astype(np.float64), seed)
    loss = mean_interval(rows.losses(chosen.gate), seed)
    return CascadeTrial(
        wish=wish,
        chosen={"fitting rows": chosen, "held-out rows": CascadePoint(chosen.gate, saving.value, loss.value)},
        curves={name: trace_curve(looked) for name, looked in sets.items()},
        accuracies={name: float(looked.fused_right.mean()) for name, looked in sets.items()},
        rows={name: len(looked.confidence) for name, looked in sets.items()},
        saving=saving,
        loss=loss,
        prediction=answers,
    )


def _look(
    served: ServedFusion, first: int, outputs: MemberOutputs, targets: NDArray[np.bool_], gate: float = 2.0
) -> tuple[CascadeRows, Prediction]:  # fmt: skip
    """See rows as a cascade does; gives those that have its choice, and its answers to all of them at `gate`."""
    everybody = served.fuse(outputs)
    alone = torch.zeros_like(outputs.present)
    alone[:, first] = outputs.present[:, first]
    lone = served.fuse(MemberOutputs(outputs.outputs, alone))
    confidence = served.believe(first, outputs).max(-1)
    has_choice = (outputs.present[:, first] & (outputs.present.sum(-1) > 1)).numpy()
    truth = targets.argmax(-1)
    right = [prediction.probabilities.argmax(-1) == truth for prediction in (lone, everybody)]
    rows = CascadeRows(confidence[has_choice], right[0][has_choice], right[1][has_choice])
    stops = has_choice & (confidence >= gate)
    probabilities = np.where(stops[:, None], lone.probabilities, everybody.probabilities)
    return rows, Prediction("cascade", "fusion", True, probabilities, everybody.present)

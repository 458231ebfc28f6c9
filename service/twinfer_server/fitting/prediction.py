"""Predictions to be judged: what the members and the fusions, as they are served, say to the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..fusion import Fusion
from .outputs import MemberOutputs

Kind = Literal["member", "fusion"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one member or one fusion says: `probabilities` float64 [rows, classes], `present` bool [rows].

    `is_fitted` says whether something fitted has a part in it.
    """

    name: str
    kind: Kind
    is_fitted: bool
    probabilities: NDArray[np.float64]
    present: NDArray[np.bool_]


def predict_fused(fusion: Fusion, weights: Tensor, outputs: MemberOutputs, *, is_fitted: bool) -> Prediction:
    """Have a fusion, on the CPU, fuse all rows; `weights` is float32 [members]."""
    with torch.inference_mode():
        fused = fusion(list(outputs.outputs), weights.expand(len(outputs), -1), outputs.present)
    name = "fitted fusion" if is_fitted else "unfitted fusion"
    present = fused.present.any(-1).numpy()
    return Prediction(name, "fusion", is_fitted, fused.prediction.double().numpy(), present)


def predict_members(fusion: Fusion, names: Sequence[str], outputs: MemberOutputs, *, is_fitted: bool) -> list[Prediction]:
    """Give what each member believes by itself, as `fusion` reads its output: with the temperature that it has there."""
    suffix = ", calibrated" if is_fitted else ""
    with torch.inference_mode():
        beliefs = [fusion.belief(index, output).double().numpy() for index, output in enumerate(outputs.outputs)]
    present = outputs.present.numpy()
    return [
        Prediction(name + suffix, "member", is_fitted, belief, present[:, index])
        for index, (name, belief) in enumerate(zip(names, beliefs, strict=True))
    ]

"""Predictions to be judged: what the members and the fusions, as they are served, say to the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..executor import FusionVersion
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


@dataclass(frozen=True, slots=True)
class ServedFusion:
    """A version of the fusion, just as the server has it: what is judged is what will be served."""

    version: FusionVersion
    is_fitted: bool

    @property
    def voters(self) -> tuple[int, ...]:
        """The members that take part in the fusion, by index."""
        return self.version.host_fusion.fused_members

    def fuse(self, outputs: MemberOutputs) -> Prediction:
        """Fuse all rows."""
        weights = torch.from_numpy(self.version.weights).float()
        with torch.inference_mode():
            counts = outputs.present.to(torch.int32)
            fused = self.version.host_fusion(list(outputs.outputs), weights.expand(len(outputs), -1), counts)
        name = "fitted fusion" if self.is_fitted else "unfitted fusion"
        present = (fused.present > 0).any(-1).numpy()
        return Prediction(name, "fusion", self.is_fitted, fused.prediction.double().numpy(), present)

    def believe(self, member: int, outputs: MemberOutputs) -> NDArray[np.float64]:
        """Give what a member believes by itself, with the temperature that this fusion has for it: float64 [rows, classes]."""
        with torch.inference_mode():
            belief: NDArray[np.float64] = (
                self.version.host_fusion.member_prediction(member, outputs.outputs[member]).double().numpy()
            )
        return belief

    def list_beliefs(self, names: Sequence[str], outputs: MemberOutputs) -> list[Prediction]:
        """Give every voter's own prediction; `names` are theirs."""
        suffix = ", calibrated" if self.is_fitted else ""
        present = outputs.present.numpy()
        return [
            Prediction(name + suffix, "member", self.is_fitted, self.believe(voter, outputs), present[:, voter])
            for voter, name in zip(self.voters, names, strict=True)
        ]

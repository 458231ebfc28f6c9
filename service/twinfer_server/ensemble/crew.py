"""Crews: the members of a flight and the one version of the fusion that fuses it, on the device and on the host alike."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidEnsemble
from ..fusion import Fusion
from ..spec import EnsembleSpec
from .member import Member


@dataclass(frozen=True, slots=True, eq=False)
class FusionVersion:
    """A fusion as it was made, never changed afterwards: whoever boards with it is fused by it, whatever comes meanwhile.

    `spec` is the ensemble's, with this fusion in it. `fusion` is on the device, `host_fusion` the same on the CPU, for rows that
    cannot wait for the join. `weights` are float64 [members], summing to 1. `gate` is the confidence from which a cascade's first
    member stands alone; without meaning where there is no cascade.
    """

    number: int
    spec: EnsembleSpec
    fusion: Fusion
    host_fusion: Fusion
    weights: NDArray[np.float64]
    gate: float


@dataclass(frozen=True, slots=True)
class Crew:
    """Who flies: the ensemble's members, and the fusion of the day."""

    members: tuple[Member, ...]
    version: FusionVersion


def make_version(number: int, spec: EnsembleSpec, fusion: Fusion, device: torch.device) -> FusionVersion:
    """Put a fusion that was built on the CPU to work on `device`; raises InvalidEnsemble where a cascade has no gate."""
    gate = spec.cascade.gate if spec.cascade else None
    if spec.cascade and gate is None:
        raise InvalidEnsemble("cascade.gate: found nothing; allowed: 0 to 1, or a fitted fusion that has one")
    return FusionVersion(number, spec, copy.deepcopy(fusion).to(device), fusion, np.array(spec.member_weights()), gate or 0.0)

"""Crews: the members of a flight and the one version of the fusion that fuses it, on the device and on the host alike."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..device import Device
from ..errors import InvalidEnsemble
from ..fusion import Fusion, build_fusion
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


def make_version(number: int, spec: EnsembleSpec, folder: Path, members: Sequence[Member], device: Device) -> FusionVersion:
    """Build the fusion that `spec` describes for members that have been probed; raises InvalidEnsemble."""
    fusion = build_fusion(spec, [member.output_shape[0] for member in members])
    gate = spec.cascade.gate if spec.cascade else None
    if spec.cascade and gate is None:
        raise InvalidEnsemble("cascade.gate: found nothing; allowed: 0 to 1, or a fitted fusion that has one")
    weights = np.array(spec.member_weights())
    return FusionVersion(number, spec, copy.deepcopy(fusion).to(device.torch_device), fusion, weights, gate or 0.0)

"""Crews: the members of a flight and the one version of the fusion that fuses it, on the device and on the host alike."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..device import Device
from ..errors import InvalidEnsemble
from ..fusion import Fusion, FusionResult, build_fusion, read_fitted, use_fitted
from ..spec import EnsembleSpec
from .member import Member

VECTOR = 32
"""The most numbers that a CPU's kernels compute at once; those that are left over they compute another way, to other last bits."""


@dataclass(frozen=True, slots=True, eq=False)
class FusionVersion:
    """A fusion as it was made, never changed afterwards: whoever boards with it is fused by it, whatever comes meanwhile.

    `spec` is the ensemble's, with this fusion in it, fitted weights and temperatures included. `fusion` is on the device,
    `host_fusion` the same on the CPU, for rows that cannot wait for the join. `weights` are float64 [members], summing to 1. `gate`
    is the confidence from which a cascade's first member stands alone; without meaning where there is no cascade.
    """

    number: int
    spec: EnsembleSpec
    fusion: Fusion
    host_fusion: Fusion
    weights: NDArray[np.float64]
    gate: float

    def fuse(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor, *, on_host: bool = False) -> FusionResult:
        """Fuse rows on the device, or on the host; see `Fusion.forward`.

        In a deterministic ensemble as if there were as many as a flight can have, and whole vectors of them: nobody is present in
        those that are added.
        """
        fusion, rows = self.host_fusion if on_host else self.fusion, len(weights)
        fused: FusionResult
        if not self.spec.deterministic:
            fused = fusion(outputs, weights, samples)
            return fused
        most = -(-self.spec.batching.max_batch_size // VECTOR) * VECTOR
        *outputs, weights, samples = (
            functional.pad(values, [0, 0] * (values.ndim - 1) + [0, most - rows]) for values in (*outputs, weights, samples)
        )
        fused = fusion(outputs, weights, samples)
        return FusionResult(fused.prediction[:rows], fused.weights[:rows], fused.disagreement[:rows], fused.present[:rows])


@dataclass(frozen=True, slots=True)
class Crew:
    """Who flies: the ensemble's members, and the fusion of the day."""

    members: tuple[Member, ...]
    version: FusionVersion


class FusionBuilder:
    """Builds versions of the fusion for one ensemble's members, which have been probed."""

    def __init__(self, folder: Path, members: Sequence[Member], texts: Tensor | None, device: Device) -> None:
        """`texts` are the embeddings of the texts that the ensemble itself brings, float32 [texts, features]; None without."""
        self._folder = folder
        self._members = tuple(members)
        self._texts = texts
        self.texts = 0 if texts is None else len(texts)
        """How many texts the ensemble brings."""
        self._device = device.torch_device

    def build(self, number: int, spec: EnsembleSpec) -> FusionVersion:
        """Build the fusion that `spec` describes, or that was fitted for it; raises InvalidEnsemble."""
        digests = {member.name: member.model.digest for member in self._members}
        fitted = read_fitted(self._folder, spec, digests) if spec.fusion.fitted else None
        shapes = [member.output_shape for member in self._members]
        fusion = build_fusion(spec, shapes, fitted, self._texts, self._folder)
        spec = use_fitted(spec, fitted)
        gate = spec.cascade.gate if spec.cascade else None
        if spec.cascade and gate is None:
            gate = fitted.gate if fitted else None
            if gate is None:
                raise InvalidEnsemble("cascade.gate: found nothing; allowed: 0 to 1, or a fitted fusion that has one")
        weights = np.array(spec.member_weights())
        return FusionVersion(number, spec, copy.deepcopy(fusion).to(self._device), fusion, weights, gate or 0.0)

"""Versions of an ensemble's fusion: how one is built and captured. A batch is fused by the one that it was formed with."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..device import CannotCapture, Device, Graph
from ..errors import InvalidEnsemble
from ..fusion import Fusion, FusionResult, build_fusion, read_fitted, use_fitted
from ..spec import EnsembleSpec
from .buffers import FusionBuffers, FusionGraph
from .latency import doublings
from .member import Member

logger = logging.getLogger(__name__)

Capture = Callable[[Callable[[], list[Tensor]]], Graph]

VECTOR = 32
"""The most numbers that a CPU's kernels compute at once; those that are left over they compute another way, to other last bits."""


@dataclass(frozen=True, slots=True, eq=False)
class FusionVersion:
    """A fusion as it was built, never changed afterwards: a batch is fused by the version that it was formed with.

    `spec` is the ensemble's, with this fusion in it, fitted weights and temperatures included. `fusion` is on the device,
    `host_fusion` the same on the CPU, for requests that cannot wait for the join. `weights` are float64 [members], summing to 1.
    `gate` is the confidence from which a cascade's first member stands alone; without meaning where there is no cascade.
    """

    number: int
    spec: EnsembleSpec
    fusion: Fusion
    host_fusion: Fusion
    weights: NDArray[np.float64]
    gate: float
    graphs: Mapping[FusionBuffers, Mapping[int, FusionGraph]] = field(default_factory=dict)
    """By buffers and batch size. They live as long as the version, and so as long as a batch that replays them."""

    def fuse(self, outputs: Sequence[Tensor], weights: Tensor, counts: Tensor, *, on_host: bool = False) -> FusionResult:
        """Fuse requests on the device, or on the host; see `Fusion.forward`.

        In a deterministic ensemble as if there were as many as a batch can have, and whole vectors of them: no member is present
        for those that are added.
        """
        fusion, requests = self.host_fusion if on_host else self.fusion, len(weights)
        result: FusionResult
        if not self.spec.deterministic:
            result = fusion(outputs, weights, counts)
            return result
        most = -(-self.spec.batching.max_batch_size // VECTOR) * VECTOR
        *outputs, weights, counts = (
            functional.pad(values, [0, 0] * (values.ndim - 1) + [0, most - requests]) for values in (*outputs, weights, counts)
        )
        result = fusion(outputs, weights, counts)
        return result.first(requests)

    def find_graph(self, buffers: FusionBuffers, requests: int) -> FusionGraph | None:
        """Find the graph for so many requests in a set of buffers; None where there is none."""
        graphs = self.graphs.get(buffers, {})
        size = min((size for size in graphs if size >= requests), default=None)
        return None if size is None else graphs[size]


class FusionBuilder:
    """Builds versions of the fusion for one ensemble's members, which have been checked."""

    def __init__(self, folder: Path, members: Sequence[Member], texts: Tensor | None, device: Device) -> None:
        """Keep what all versions share; `texts` are the embeddings of the ensemble's own texts, float32 [texts, features]."""
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


def capture_fusion(
    version: FusionVersion, buffer_sets: Sequence[FusionBuffers], members: Sequence[Member], device: Device, *,
    is_serving: bool = False,
) -> FusionVersion:  # fmt: skip
    """Return the version with CUDA graphs at every batch size in the given sets of fusion buffers, where it can have them.

    Call it on a thread that the device has prepared. A fusion of a request's several samples has no fixed size, and runs eagerly.
    """
    if not device.can_capture or any(member.samples_per_request > 1 for member in members):
        return version
    most = version.spec.batching.max_batch_size
    sizes = (most,) if version.spec.deterministic else doublings(1, most)
    graphs: dict[FusionBuffers, dict[int, FusionGraph]] = {}
    try:
        with torch.inference_mode():
            for buffers in buffer_sets:
                stream = buffers.prepare_capture(device, [member.output_shape for member in members])
                capture = partial(device.capture, stream, pool=device.graph_pool(), is_serving=is_serving)
                graphs[buffers] = {size: _capture(device, version, buffers, size, capture) for size in reversed(sizes)}
    except CannotCapture as error:
        logger.warning("fusion version %d runs eagerly: %s", version.number, error)
        return version
    return replace(version, graphs=graphs)


def _capture(device: Device, version: FusionVersion, buffers: FusionBuffers, size: int, capture: Capture) -> FusionGraph:
    """Capture a version of the fusion at one batch size, with its copy to the host."""

    def fuse() -> FusionResult:
        outputs = [values[:size] for values in buffers.graph_inputs]
        return version.fuse(outputs, buffers.device_weights[:size], buffers.device_counts[:size])

    # Pinned memory cannot be allocated inside a capture.
    host = FusionResult(*(device.buffers(tuple(part.shape), part.dtype)[0] for part in fuse().parts()))

    def work() -> list[Tensor]:
        result = fuse()
        for there, part in zip(host.parts(), result.parts(), strict=True):
            there.copy_(part, non_blocking=True)
        return list(result.parts())

    return FusionGraph(capture(work), host)

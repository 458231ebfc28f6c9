"""The versions of an ensemble's fusion: how one is built, tried, captured, put to use while requests are answered, taken back."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from ..device import CannotCapture, Device, Graph
from ..errors import FusionConflict, InvalidEnsemble, InvalidOption, quote
from ..fusion import FITTED_FILE, METHODS, Fusion, FusionResult, build_fusion, read_fitted, read_fitted_method, use_fitted
from ..spec import EnsembleSpec, describe_faults
from .buffers import FusionBuffers, FusionGraph
from .latency import doublings
from .member import Member

if TYPE_CHECKING:
    from .ensemble import Ensemble

logger = logging.getLogger(__name__)

Capture = Callable[[Callable[[], list[Tensor]]], Graph]

MAX_KEPT = 16
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


@dataclass(frozen=True, slots=True)
class FusionChange:
    """What is to be different; empty or None leaves a thing as it is. `is_fitted` reads what `twinfer fit` has written."""

    expected_version: int = 0
    method: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    is_fitted: bool = False


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


class FusionVersions:
    """Builds, keeps and changes versions. Not thread-safe: one change at a time, on a thread that may compute and wait."""

    def __init__(self, ensemble: "Ensemble") -> None:
        """Begin with the version that the ensemble was loaded with."""
        self._ensemble = ensemble
        self._kept = {ensemble.fusion.number: ensemble.fusion}
        self._last_number = ensemble.fusion.number

    def update(self, change: FusionChange) -> None:
        """Put another version to use; raises InvalidOption for one that cannot be, FusionConflict if it comes too late."""
        current = self._ensemble.fusion
        if change.expected_version not in (0, current.number):
            raise FusionConflict(f"expected_version: found {change.expected_version}; allowed: {current.number}, the one in use")
        try:
            version = self._ensemble.fusion_builder.build(self._last_number + 1, self._change_spec(change))
        except InvalidEnsemble as error:
            raise InvalidOption(str(error).replace(f"{self._ensemble.folder}/", "")) from None
        self._try(version)
        version = capture_fusion(self._ensemble, version, is_serving=True)
        self._use(version)
        self._last_number = version.number
        self._kept[version.number] = version
        while len(self._kept) > MAX_KEPT:
            del self._kept[min(number for number in self._kept if number != version.number)]

    def roll_back(self, number: int) -> None:
        """Put an earlier version to use again: the one of this number, or the one before (0); raises FusionConflict."""
        before = max((kept for kept in self._kept if kept < self._ensemble.fusion.number), default=0)
        version = self._kept.get(number or before)
        if version is None:
            raise FusionConflict(f"version: found {number or 'none before the one in use'}; allowed: {sorted(self._kept)}")
        self._use(version)

    def _change_spec(self, change: FusionChange) -> EnsembleSpec:
        """Write the changed fusion's spec, checked as if it stood in the file."""
        now = self._ensemble.fusion.spec
        if change.is_fitted:
            if change.method or change.weights or change.temperatures:
                raise InvalidOption("fitted: found together with a method, weights or temperatures; allowed: alone")
            fusion: dict[str, object] = {"method": read_fitted_method(self._ensemble.folder), "fitted": FITTED_FILE}
        else:
            method = change.method or now.fusion.method
            kept = now.fusion.model_dump(exclude_none=True, exclude_defaults=True)
            if method != now.fusion.method:
                if method not in METHODS:
                    raise InvalidOption(f"method: found {quote(method)}; allowed: {', '.join(map(repr, METHODS))}")
                kept = {key: kept[key] for key in kept if key in METHODS[method].takes - {"temperatures", "fitted"}}
            fusion = kept | {"method": method}
            fusion |= {"weights": dict(change.weights)} if change.weights else {}
            fusion |= {"temperatures": dict(change.temperatures)} if change.temperatures else {}
        document = now.model_dump(exclude_unset=True) | {"fusion": fusion}
        try:
            return EnsembleSpec.model_validate(document, context={"folder": self._ensemble.folder})
        except ValidationError as error:
            raise InvalidOption(next(describe_faults(error)).removeprefix("fusion.")) from None

    def _try(self, version: FusionVersion) -> None:
        """Fuse made-up outputs on the device and on the host: pays for what the first call costs, and shows what raises."""
        ensemble = self._ensemble
        ensemble.device.prepare_thread()
        try:
            with torch.inference_mode():
                for on_host, device in ((False, ensemble.device.torch_device), (True, torch.device("cpu"))):
                    outputs, weights, counts = make_fusion_inputs(ensemble, device)
                    version.fuse(outputs, weights, counts, on_host=on_host)
        except Exception as error:
            logger.exception("a new fusion raised")
            raise InvalidOption(f"fusion: it raised {type(error).__name__} on made-up outputs; the server's log has it") from None

    def _use(self, version: FusionVersion) -> None:
        """Let the next batch be formed with `version`."""
        self._ensemble.fusion = version
        logger.info("fusion version %d is in use: %s", version.number, version.spec.fusion.method)


def make_fusion_inputs(ensemble: "Ensemble", device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """Make a full batch of made-up member outputs, with equal weights and every member present."""
    requests, members = ensemble.spec.batching.max_batch_size, ensemble.members
    shapes = [(1,) * (member.samples_per_request > 1) + member.output_shape for member in members]
    outputs = [torch.zeros((requests, *shape), device=device) for shape in shapes]
    everyone = torch.ones((requests, len(shapes)), device=device)
    return outputs, everyone / len(shapes), everyone.to(torch.int32)


def capture_fusion(ensemble: "Ensemble", version: FusionVersion, *, is_serving: bool = False) -> FusionVersion:
    """Return the version with CUDA graphs at every batch size in the first sets of fusion buffers, where it can have them.

    Call it on a thread that the device has prepared. A fusion of a request's several samples has no fixed size, and runs eagerly.
    """
    if not ensemble.device.can_capture or any(member.samples_per_request > 1 for member in ensemble.members):
        return version
    most = ensemble.spec.batching.max_batch_size
    sizes = (most,) if version.spec.deterministic else doublings(1, most)
    graphs: dict[FusionBuffers, dict[int, FusionGraph]] = {}
    try:
        with torch.inference_mode():
            for buffers in ensemble.captured_fusion_buffers:
                stream = buffers.prepare_capture(ensemble.device, [member.output_shape for member in ensemble.members])
                pool = ensemble.device.graph_pool()
                capture = partial(ensemble.device.capture, stream, pool=pool, is_serving=is_serving)
                graphs[buffers] = {size: _capture(ensemble.device, version, buffers, size, capture) for size in reversed(sizes)}
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

"""Changes of the fusion while requests are answered: another version is tried, put to use for the next batch, or taken back."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import FusionConflict, InvalidEnsemble, InvalidOption, quote
from ..fusion import FITTED_FILE, METHODS, read_fitted_method
from ..spec import EnsembleSpec, describe_faults
from .ensemble import Ensemble
from .fusion_versions import FusionVersion

logger = logging.getLogger(__name__)

MAX_KEPT = 16


@dataclass(frozen=True, slots=True)
class FusionChange:
    """What is to be different; empty or None leaves a thing as it is. `is_fitted` reads what `twinfer fit` has written."""

    expected_version: int = 0
    method: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    is_fitted: bool = False


class FusionVersions:
    """Builds, keeps and changes versions. Not thread-safe: one change at a time, on a thread that may compute and wait."""

    def __init__(self, ensemble: Ensemble) -> None:
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
        version = self._ensemble.capture(version, is_serving=True)
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
                    outputs, weights, counts = _make_inputs(ensemble, device)
                    version.fuse(outputs, weights, counts, on_host=on_host)
        except Exception as error:
            logger.exception("a new fusion raised")
            raise InvalidOption(f"fusion: it raised {type(error).__name__} on made-up outputs; the server's log has it") from None

    def _use(self, version: FusionVersion) -> None:
        """Let the next batch be formed with `version`."""
        self._ensemble.fusion = version
        logger.info("fusion version %d is in use: %s", version.number, version.spec.fusion.method)


def _make_inputs(ensemble: Ensemble, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """Make a full batch of made-up member outputs, with equal weights and every member present."""
    requests, members = ensemble.spec.batching.max_batch_size, ensemble.members
    shapes = [(1,) * (member.samples_per_request > 1) + member.output_shape for member in members]
    outputs = [torch.zeros((requests, *shape), device=device) for shape in shapes]
    everyone = torch.ones((requests, len(shapes)), device=device)
    return outputs, everyone / len(shapes), everyone.to(torch.int32)

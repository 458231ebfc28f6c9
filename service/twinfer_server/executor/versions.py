"""The versions of an ensemble's fusion: how another one is made, tried and put to use while rows fly, and how one goes back."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from pydantic import ValidationError

from ..errors import FusionConflict, InvalidEnsemble, InvalidOption, quote
from ..fusion import FITTED_FILE, METHODS, read_fitted_method
from ..spec import EnsembleSpec, describe_faults
from .capture import CannotCapture, CapturedFusion
from .crew import Crew, FusionVersion
from .ensemble import Ensemble

logger = logging.getLogger(__name__)

MAX_KEPT = 16

Hold = Callable[[], AbstractContextManager[None]]
"""Makes a stretch in which nothing is in the air and nothing takes off; rows wait meanwhile."""


@dataclass(frozen=True, slots=True)
class FusionChange:
    """What is to be different; empty or None leaves a thing as it is. `is_fitted` reads what `twinfer fit` has written."""

    expected_version: int = 0
    method: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    is_fitted: bool = False


class FusionVersions:
    """Makes, keeps and changes versions. Not thread-safe: one change at a time, on a thread that may compute and wait."""

    def __init__(self, ensemble: Ensemble, hold: Hold) -> None:
        """Begin with the version that the ensemble was loaded with."""
        self._ensemble = ensemble
        self._hold = hold
        self._kept = {self.current.number: self.current}
        self._last_number = self.current.number

    @property
    def current(self) -> FusionVersion:
        """The version that the next flight takes on board."""
        return self._ensemble.crew.version

    def update(self, change: FusionChange) -> None:
        """Put another version to use; raises InvalidOption for one that cannot be, FusionConflict if it comes too late."""
        if change.expected_version not in (0, self.current.number):
            raise FusionConflict(
                f"expected_version: found {change.expected_version}; allowed: {self.current.number}, the one in use"
            )
        try:
            version = self._ensemble.fusion_builder.build(self._last_number + 1, self._change_spec(change))
        except InvalidEnsemble as error:
            raise InvalidOption(str(error).replace(f"{self._ensemble.folder}/", "")) from None
        self._try(version)
        self._use(version)
        self._last_number = version.number
        self._kept[version.number] = version
        while len(self._kept) > MAX_KEPT:
            del self._kept[min(number for number in self._kept if number != version.number)]

    def roll_back(self, number: int) -> None:
        """Put an earlier version to use again: the one of this number, or the one before (0); raises FusionConflict."""
        before = max((kept for kept in self._kept if kept < self.current.number), default=0)
        version = self._kept.get(number or before)
        if version is None:
            raise FusionConflict(f"version: found {number or 'none before the one in use'}; allowed: {sorted(self._kept)}")
        self._use(version)

    def _change_spec(self, change: FusionChange) -> EnsembleSpec:
        """Write the changed fusion's spec, checked as if it stood in the file."""
        now = self.current.spec
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
        rows = ensemble.spec.batching.max_batch_size
        try:
            with torch.inference_mode():
                for fusion, place in ((version.fusion, ensemble.device.torch_device), (version.host_fusion, torch.device("cpu"))):
                    shapes = [(1,) * (member.samples_per_row > 1) + member.output_shape for member in ensemble.members]
                    outputs = [torch.zeros((rows, *shape), device=place) for shape in shapes]
                    everyone = torch.ones((rows, len(shapes)), device=place)
                    fusion(outputs, everyone / len(shapes), everyone.to(torch.int32))
        except Exception as error:
            logger.exception("a new fusion raised")
            raise InvalidOption(f"fusion: it raised {type(error).__name__} on made-up outputs; the server's log has it") from None

    def _use(self, version: FusionVersion) -> None:
        """Let the next flight board with `version`; if captured flights cannot take it in place, they are captured anew first."""
        ensemble = self._ensemble
        crew = Crew(ensemble.members, version)
        if not ensemble.flight_captures or ensemble.captured_fusion.fits(version):
            ensemble.crew = crew
        else:
            with self._hold(), torch.inference_mode():
                ensemble.device.prepare_thread()
                ensemble.captured_fusion = CapturedFusion(version)
                try:
                    for key, capture in list(ensemble.flight_captures.items()):
                        ensemble.flight_captures[key] = capture.capture_again(crew, ensemble.captured_fusion)
                except CannotCapture as error:
                    logger.warning("flights are captured no more: %s", error)
                    ensemble.flight_captures.clear()
                except InvalidEnsemble:
                    ensemble.flight_captures.clear()  # some may fuse by this version already, which is not put to use
                    raise
                ensemble.crew = crew
        logger.info("fusion version %d is in use: %s", version.number, version.spec.fusion.method)

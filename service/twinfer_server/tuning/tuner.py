"""The tuner: gives a member the precision and acceleration that its spec names, or finds the fastest within its tolerance."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..device import Device
from ..errors import InvalidEnsemble
from ..kept_file import KeptFile
from ..loaders import LoadedModel
from ..loaders.source import outline
from ..spec import MemberSpec
from .acceleration import ACCELERATIONS
from .agreement import Agreement
from .choices import Choice, KeptChoice
from .conversion import convert
from .precision import PRECISIONS
from .race import Race, judge, run_race
from .refusal import Refused
from .samples import ProbeSamples

logger = logging.getLogger(__name__)

AUTO_TOLERANCE = 1e-4
"""How far `auto` may go where the file says nothing: about as far as kernels differ among themselves."""
WORTH_A_SWITCH = 1.02
"""How many times as fast another choice must be; nowhere may it be slower by as much."""
MOST_HELD = 0.5
"""The part of a call for which a member may keep other threads from running Python."""
TRIED_ON_CPU = ("fp32", "bf16", "int8_dynamic", "int8_weight_only")
"""The precisions that `auto` tries on a CPU: with others none multiplies faster."""

OnTry = Callable[[Choice], None]


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """A member's model as it is served, and what it gains and costs against fp32 eager.

    `speed_up` is how many times as fast it is, the geometric mean over one sample and the most; 1 where it is just that. `refused`
    says, by choice, why others were not taken.
    """

    model: LoadedModel
    choice: Choice = Choice()  # noqa: RUF009  # frozen
    speed_up: float = 1.0
    largest_error: float = 0.0
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One choice that works: the converted model, how close its answers are and how fast they come."""

    choice: Choice
    model: LoadedModel
    agreement: Agreement
    race: Race


class Tuner:
    """Tunes members on one device; `cache` is where choices and compiled code are kept, None for nowhere of its own."""

    def __init__(self, device: Device, cache: Path | None = None) -> None:
        """Remember them."""
        self._device = device
        self._cache = cache

    def tune(self, key: str, spec: MemberSpec, model: LoadedModel, samples: ProbeSamples) -> Tuned:
        """Give the model its precision and acceleration. Call it in inference mode, on a thread that the device has prepared.

        `key` is the member's path in the file; raises InvalidEnsemble where the member cannot have what the file names.
        """
        if "auto" in (spec.precision, spec.acceleration):
            return self._choose(key, spec, model, samples)
        choice = Choice(spec.precision, spec.acceleration)
        if choice == Choice():
            return Tuned(model)
        try:
            trial = self.try_out(choice, spec, model, samples)
        except Refused as reason:
            raise InvalidEnsemble(f'{key}: found {choice}, refused: {reason}; allowed: "fp32" and "eager", or "auto"') from None
        error = trial.agreement.largest_error
        if spec.tolerance is not None and not error <= spec.tolerance:
            raise InvalidEnsemble(
                f"{key}.tolerance: found {spec.tolerance:g}, but {choice} is off by {error:.3g} of the largest output; "
                "allowed: a wider tolerance, or another precision"
            )
        if trial.race.held > MOST_HELD:
            logger.warning("%s: %s", key, _describe_hold(trial.race))
        return Tuned(trial.model, choice, trial.race.speed_up, error)

    def try_out(self, choice: Choice, spec: MemberSpec, model: LoadedModel, samples: ProbeSamples) -> Trial:
        """Convert the model and measure it against itself in fp32, eagerly; raises Refused."""
        converted = self._convert(model, choice, samples)
        try:
            agreement = judge(model, converted, samples, spec.output.kind in ("logits", "probabilities"))
            return Trial(choice, converted, agreement, run_race(model, converted, samples, self._device.torch_device))
        except Exception as error:  # a member's own code, or a kernel that the device lacks
            raise Refused(f"it fails on samples: {type(error).__name__}: {outline(error)}") from None

    def list_choices(self, spec: MemberSpec) -> Iterator[Choice]:
        """List what `auto` tries: every precision with every acceleration, or those that the spec leaves open."""
        on_cpu = self._device.torch_device.type == "cpu"
        precisions = (TRIED_ON_CPU if on_cpu else tuple(PRECISIONS)) if spec.precision == "auto" else (spec.precision,)
        accelerations = tuple(ACCELERATIONS) if spec.acceleration == "auto" else (spec.acceleration,)
        return (Choice(precision, acceleration) for precision in precisions for acceleration in accelerations)

    def _choose(self, key: str, spec: MemberSpec, model: LoadedModel, samples: ProbeSamples) -> Tuned:
        kept = self._file(spec, model, samples)
        before = kept.read() if kept else None
        if before is not None:
            try:
                return self._repeat(before, spec, model, samples)
            except Refused as error:
                logger.warning("%s: %s was chosen before and is refused now: %s", key, before.choice, error)
        best = Tuned(model)
        refused: dict[str, str] = {}
        for choice in self.list_choices(spec):
            if choice == Choice():
                continue
            logger.info("%s: trying %s", key, choice)
            try:
                trial = self.try_out(choice, spec, model, samples)
                _require_worth(trial, _find_tolerance(spec), best)
            except Refused as error:
                refused[str(choice)] = str(error)
                continue
            if best.choice != Choice():
                refused[str(best.choice)] = f"{choice} is faster"
            best = Tuned(trial.model, choice, trial.race.speed_up, trial.agreement.largest_error)
        best = replace(best, refused=refused)
        logger.info("%s: %s is served, %.2f times as fast as fp32 eager", key, best.choice, best.speed_up)
        if kept:
            kept.write(KeptChoice(best.choice, best.speed_up, refused))
        return best

    def _repeat(self, before: KeptChoice, spec: MemberSpec, model: LoadedModel, samples: ProbeSamples) -> Tuned:
        """Convert as an earlier start chose; how close the answers are is measured again, for it costs one call. Raises Refused."""
        converted = self._convert(model, before.choice, samples)
        error = judge(model, converted, samples, False).largest_error
        if not error <= _find_tolerance(spec):
            raise Refused(f"it is off by {error:.3g}")
        return Tuned(converted, before.choice, before.speed_up, error, before.refused)

    def _convert(self, model: LoadedModel, choice: Choice, samples: ProbeSamples) -> LoadedModel:
        return convert(model, choice, self._device.torch_device, samples, self._cache / "compiled" if self._cache else None)

    def _file(self, spec: MemberSpec, model: LoadedModel, samples: ProbeSamples) -> KeptFile[KeptChoice] | None:
        """Name the file of the choice; None where a program has no digest to go by, or nothing is kept."""
        if self._cache is None or not model.digest:
            return None
        parts = [self._device.fingerprint, model.digest, spec.model_dump_json(), tuple(samples.paced)]
        return KeptFile(self._cache, "choice", KeptChoice, parts)


def _find_tolerance(spec: MemberSpec) -> float:
    return AUTO_TOLERANCE if spec.tolerance is None else spec.tolerance


def _require_worth(trial: Trial, tolerance: float, best: Tuned) -> None:
    """Raise Refused unless the trial is within the tolerance, never slower than fp32 eager, and faster than the best so far."""
    race, error = trial.race, trial.agreement.largest_error
    if not error <= tolerance:
        raise Refused(f"it is off by {error:.3g} of the largest output; the tolerance is {tolerance:g}")
    if race.held > MOST_HELD:
        raise Refused(_describe_hold(race))
    for count, ratio in race.speed_ups.items():
        if ratio * WORTH_A_SWITCH < 1:
            raise Refused(f"it is {ratio:.2f} times as fast as fp32 eager at {count} samples")
    if race.speed_up - max(race.errors.values()) < WORTH_A_SWITCH:
        raise Refused(f"it is {race.speed_up:.2f} times as fast as fp32 eager, which may be chance")
    if race.speed_up <= best.speed_up:
        raise Refused(f"{best.choice} is faster")


def _describe_hold(race: Race) -> str:
    return (
        f"it keeps other threads from running Python for {race.held:.0%} of a call, which stalls the event loop and forbids overlap"
    )

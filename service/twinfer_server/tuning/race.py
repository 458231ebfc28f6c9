"""Races: a converted model against the same one in fp32, eagerly, on the same samples."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..loaders import LoadedModel
from .agreement import Agreement, measure_agreement
from .pace import hold_share, pace
from .samples import ProbeSamples

LONG_ENOUGH_SECONDS = 0.005
"""Shorter calls stall nobody: Python's own turns are as long."""


@dataclass(frozen=True, slots=True)
class Race:
    """How a converted model did.

    By number of samples, `seconds` are the medians of its calls, `reference_seconds` those of fp32 eager beside it, and `speed_ups`
    how many times as fast it was, as the median of pairs; `errors` are the standard errors of those. `held` is the part of a
    call in which no other thread may run Python, 0 to 1.
    """

    seconds: Mapping[int, float]
    reference_seconds: Mapping[int, float]
    speed_ups: Mapping[int, float]
    errors: Mapping[int, float]
    held: float

    @property
    def speed_up(self) -> float:
        """The geometric mean over the numbers of samples."""
        return math.exp(sum(math.log(value) for value in self.speed_ups.values()) / len(self.speed_ups))


def judge(reference: LoadedModel, converted: LoadedModel, samples: ProbeSamples, has_classes: bool) -> Agreement:
    """Compare what both answer to the most samples."""
    count = max(samples.paced)
    wanted, found = (samples.compute(model.module, count) for model in (reference, converted))
    return measure_agreement(wanted, found, has_classes)


def run_race(reference: LoadedModel, converted: LoadedModel, samples: ProbeSamples, device: torch.device) -> Race:
    """Time both in turns at one sample and at the most; nothing else may compute meanwhile."""
    seconds, reference_seconds, speed_ups, errors, held = {}, {}, {}, {}, 0.0
    for count in samples.paced:
        paces = pace([_call(model, samples, count) for model in (reference, converted)], device)
        reference_seconds[count], seconds[count] = paces.medians
        speed_ups[count], errors[count] = paces.ratio(0, 1)
        if device.type == "cpu" and seconds[count] > LONG_ENOUGH_SECONDS:
            held = max(held, hold_share(_call(converted, samples, count)))
    return Race(seconds, reference_seconds, speed_ups, errors, held)


def _call(model: LoadedModel, samples: ProbeSamples, count: int) -> Callable[[], object]:
    return lambda: model.module(*samples.paced[count])

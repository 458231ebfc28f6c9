"""Conversion: from a loaded model to the same model at the precision and with the acceleration that its spec names."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import InvalidEnsemble
from ..loaders import LoadedModel
from ..loaders.model import count_bytes
from ..loaders.source import outline
from ..spec import MemberSpec
from .accelerations import ACCELERATIONS
from .precisions import PRECISIONS, Arguments, Refused

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSamples:
    """Made-up samples of one member, on its device, in the buffers that it is served from.

    `largest`: the arguments of as many samples as the error is measured on.
    `shapes`: the arguments that the model is compiled for; their dimensions listed in `dynamic`, argument by argument, stand for
    any size where they are above 1.
    `read` returns the outputs that count of what the model returns, float32 [samples, ...] each.
    """

    largest: Arguments
    shapes: tuple[Arguments, ...]
    dynamic: tuple[tuple[int, ...], ...]
    read: Callable[[object], list[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """A model as it is served; `largest_error` is that against fp32 eager, as a part of the largest absolute output."""

    model: LoadedModel
    largest_error: float = 0.0


def convert(
    spec: MemberSpec, model: LoadedModel, samples: CalibrationSamples, device: torch.device, key: str
) -> Converted:  # fmt: skip
    """Return a converted copy of `model`, compared once with fp32 eager; `model` itself stays as it is.

    `key` is the member's path in the ensemble's file ("members.vision"); errors begin with it. The size of the copy is that of its
    parameters and buffers; compiled code packs its own copy of the weights beside them. Call it in inference mode.
    Raises InvalidEnsemble where the device, the model or an absent library cannot do it, and where `spec.tolerance` is exceeded.
    """
    if (spec.precision, spec.acceleration) == ("fp32", "eager"):
        return Converted(model)
    first_key, first = ("precision", spec.precision) if spec.precision != "fp32" else ("acceleration", spec.acceleration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and torchao warn about their own parts while they are imported and at work
        with _refusing(f"{key}.{first_key}", first):
            converted = PRECISIONS[spec.precision](_copy_module(model), device, samples.shapes[0])
        with _refusing(f"{key}.acceleration", spec.acceleration):
            called = ACCELERATIONS[spec.acceleration](converted, device, samples.shapes, samples.dynamic)
    with _refusing(f"{key}.{first_key}", first):
        error = _compare(model.module, called, samples)
    if spec.tolerance is not None and not error <= spec.tolerance:
        raise InvalidEnsemble(
            f"{key}.tolerance: found {spec.tolerance:g}, but {spec.precision} {spec.acceleration} is off by {error:.3g} of the "
            "largest output; allowed: a wider tolerance, or another precision"
        )
    logger.info(
        "%s computes in %s %s, off by %.3g of the largest output of fp32 eager", key, spec.precision, spec.acceleration, error
    )
    size = count_bytes(_walk_plain([*converted.parameters(), *converted.buffers()]))
    return Converted(replace(model, module=called, parameter_bytes=size, checked=None), error)


def measure_error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest absolute difference over the largest absolute value of what is expected, of the worst of all outputs.

    expected, found: float32 [samples, ...] each. Infinite where shapes differ, or where an element is not finite but should be.
    """
    errors = [0.0]
    for wanted, values in zip(expected, found, strict=True):
        if wanted.shape != values.shape:
            return math.inf
        error = (values - wanted).abs().max().item() / (wanted.abs().max().item() or 1.0)
        errors.append(error if math.isfinite(error) else math.inf)
    return max(errors)


def _compare(reference: Callable[..., object], called: Callable[..., object], samples: CalibrationSamples) -> float:
    """Compute `samples.largest` with both models and return the error of the second; raises Refused where it raises."""
    expected = samples.read(reference(*samples.largest))
    try:
        return measure_error(expected, samples.read(called(*samples.largest)))
    except Exception as error:  # the member's own code, or a kernel that the device lacks
        raise Refused(f"it fails on samples: {type(error).__name__}: {outline(error)}") from None


@contextmanager
def _refusing(key: str, found: str) -> Iterator[None]:
    """Turn Refused into InvalidEnsemble for the key in the ensemble's file."""
    try:
        yield
    except Refused as reason:
        plain = '"eager"' if key.endswith("acceleration") else '"fp32"'
        raise InvalidEnsemble(f'{key}: found "{found}", refused: {reason}; allowed: {plain}, which every model has') from None


def _copy_module(model: LoadedModel) -> nn.Module:
    """Return a deep copy of the model's module; raises Refused."""
    module = next((module for module in (model.checked, model.module) if isinstance(module, nn.Module)), None)
    if module is None:
        raise Refused(f"the loader {model.loader!r} makes no nn.Module whose numbers or code could be changed")
    try:
        return copy.deepcopy(module)
    except Exception as error:  # a module that holds what cannot be copied
        raise Refused(f"it cannot be copied: {type(error).__name__}: {outline(error)}") from None


def _walk_plain(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors themselves, or those that a quantised tensor is made of."""
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            yield from _walk_plain([getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]])
        else:
            yield tensor

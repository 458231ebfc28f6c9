"""Conversion: from a loaded model to the same model at the precision and with the acceleration that its spec names."""

import copy
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InvalidEnsemble
from ..loaders import LoadedModel
from ..loaders.arguments import name_dtype
from ..loaders.model import count_bytes
from ..spec import MemberSpec
from .precisions import ACCELERATIONS, PRECISIONS, CalibrationSamples, Refused

OWN_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What a model that was saved in other floats than float32 computes in already."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """A model as it is served; `largest_error` is that against fp32 eager, as a part of the largest absolute output."""

    model: LoadedModel
    largest_error: float = 0.0


def convert(spec: MemberSpec, model: LoadedModel, samples: CalibrationSamples, key: str) -> Converted:
    """Return a copy of `model` in another setup than fp32 eager, compared with that once; `model` itself stays as it is.

    `key` is the member's path in the ensemble's file ("members.vision"); errors begin with it. The size of the copy is that of its
    parameters and buffers; compiled code packs its own copy of the weights beside them. Call it in inference mode.
    Raises InvalidEnsemble where the device, the model or an absent library cannot do it, and where `spec.tolerance` is exceeded.
    """
    precision = _find_precision(spec, model, key)
    if (precision, spec.acceleration) == ("fp32", "eager"):
        return Converted(model)
    accelerating = partial(_refusing, f"{key}.acceleration", spec.acceleration, "eager")
    converting = partial(_refusing, f"{key}.precision", spec.precision, "fp32") if spec.precision != "fp32" else accelerating
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and torchao warn about their own parts while they are imported and at work
        with converting():
            converted = PRECISIONS[precision](_copy_module(model), samples.shapes[0])
        with accelerating():
            called = ACCELERATIONS[spec.acceleration](converted, samples)
    expected = samples.read(model.module(*samples.largest))
    with converting():
        try:
            error = measure_error(expected, samples.read(called(*samples.largest)))
        except Exception as failure:  # the member's own code, or a kernel that the device lacks
            raise Refused.after("it fails on samples", failure) from None
    setup = f"{spec.precision} {spec.acceleration}"
    if spec.tolerance is not None and not error <= spec.tolerance:
        raise InvalidEnsemble(
            f"{key}.tolerance: found {spec.tolerance:g}, but {setup} is off by {error:.3g} of the largest output; "
            "allowed: a wider tolerance, or another precision"
        )
    logger.info("%s computes in %s, off by %.3g of the largest output of fp32 eager", key, setup, error)
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


def _find_precision(spec: MemberSpec, model: LoadedModel, key: str) -> str:
    """Return the precision to convert to, for the model's own "fp32", which changes nothing; raises InvalidEnsemble for another."""
    own = OWN_PRECISIONS.get(model.dtype, "fp32")
    if model.dtype is not torch.float32 and spec.precision not in ("fp32", own):
        allowed = " or ".join(f'"{name}"' for name in dict.fromkeys((own, "fp32")))
        found = f'found "{spec.precision}", and the model was saved in {name_dtype(model.dtype)}, in which it computes'
        raise InvalidEnsemble(f"{key}.precision: {found}; allowed: {allowed}, which leave it so")
    return spec.precision if model.dtype is torch.float32 else "fp32"


@contextmanager
def _refusing(key: str, found: str, plain: str) -> Iterator[None]:
    """Turn Refused into InvalidEnsemble for the key in the ensemble's file."""
    try:
        yield
    except Refused as reason:
        raise InvalidEnsemble(f'{key}: found "{found}", refused: {reason}; allowed: "{plain}", which every model has') from None


def _copy_module(model: LoadedModel) -> nn.Module:
    """Return a deep copy of the model's module; raises Refused."""
    module = next((module for module in (model.checked, model.module) if isinstance(module, nn.Module)), None)
    if module is None:
        raise Refused(f"the loader {model.loader!r} makes no nn.Module whose numbers or code could be changed")
    try:
        return copy.deepcopy(module)
    except Exception as error:  # a module that holds what cannot be copied
        raise Refused.after("it cannot be copied", error) from None


def _walk_plain(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors themselves, or those that a quantised tensor is made of."""
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            yield from _walk_plain(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        else:
            yield tensor

"""Conversion: from a loaded model to the same model at another precision, accelerated."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..loaders import LoadedModel
from ..loaders.model import count_bytes
from ..loaders.source import outline
from .acceleration import ACCELERATIONS
from .choices import Choice
from .precision import PRECISIONS
from .refusal import Refused
from .samples import ProbeSamples


def convert(model: LoadedModel, choice: Choice, device: torch.device, samples: ProbeSamples, cache: Path | None) -> LoadedModel:
    """Make a converted copy of `model`, which stays as it is; raises Refused. Call it in inference mode.

    `cache` is where compiled code is kept. The size is that of the copy's parameters and buffers; compiled code brings its own
    packed copy of those that it multiplies with.
    """
    if choice == Choice():
        return model
    module = _find_module(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and torchao say of themselves while they are imported and at work
        try:
            copied = copy.deepcopy(module)
        except Exception as error:  # of modules that hold what cannot be copied
            raise Refused(f"it cannot be copied: {type(error).__name__}: {outline(error)}") from None
        converted = PRECISIONS[choice.precision](copied, device, samples.shapes[0])
        called = ACCELERATIONS[choice.acceleration](converted, device, samples, cache)
    size = count_bytes(_walk_plain([*converted.parameters(), *converted.buffers()]))
    return replace(model, module=called, parameter_bytes=size, checked=None)


def _find_module(model: LoadedModel) -> nn.Module:
    for candidate in (model.checked, model.module):
        if isinstance(candidate, nn.Module):
            return candidate
    raise Refused(f"what the loader {model.loader!r} gives is no nn.Module whose numbers or code could be changed")


def _walk_plain(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors themselves, or of quantised ones those that they are made of."""
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            yield from _walk_plain([getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]])
        else:
            yield tensor

"""Inputs: what requests carry becomes members' samples; one file for each kind, picked by the spec's `kind`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..spec import ImageInputSpec, TensorInputSpec, TextInputSpec
from .image import ImageInput
from .kind import BufferSpec, InputKind, InputLimits
from .request import RequestProcessor
from .tensor import TensorInput, UpstreamInput
from .text import TextInput

INPUT_KINDS: Mapping[str, Callable[..., InputKind[Any]]] = {"image": ImageInput, "text": TextInput, "tensor": TensorInput}


def make_input(
    member: str,
    name: str,
    spec: ImageInputSpec | TextInputSpec | TensorInputSpec,
    folder: Path,
    limits: InputLimits,
    device: torch.device,
) -> InputKind[Any]:
    """Make the input `name` of `member`, which computes on `device`; raises InvalidEnsemble where a file cannot be used."""
    return INPUT_KINDS[spec.kind](f"members.{member}.input.{name}", name, spec, folder, limits, device)


__all__ = ["BufferSpec", "InputKind", "InputLimits", "RequestProcessor", "TextInput", "UpstreamInput", "make_input"]

"""Pictures as files, and what a member sees of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from twinfer_server.inputs import InputKind, InputLimits, make_input
from twinfer_server.inputs.kind import IN_FULL, Size
from twinfer_server.spec import ImageInputSpec
from twinfer_server.types import Array, RawInput


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Write a picture as a file of that format."""
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def make_kind(limits: InputLimits | None = None, *, size: Sequence[int], **keys: object) -> InputKind[Any]:
    """Make the input "image" of a member "vision", with the `keys` that an ensemble's file would give it."""
    spec = ImageInputSpec.model_validate({"kind": "image", "size": list(size), **keys})
    return make_input("vision", "image", spec, Path(), limits or InputLimits(), torch.device("cpu"))


def see(kind: InputKind[Any], value: RawInput, min_size: Size = IN_FULL) -> Array:
    """Give the uint8 pixels [height, width, channels] that the member gets."""
    [samples] = kind.prepare(kind.decode(value, min_size))
    return np.asarray(samples[0])

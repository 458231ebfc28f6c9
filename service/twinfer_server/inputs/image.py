"""Images: encoded bytes or ready pixels in, float32 [samples, channels, height, width] to the member."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..spec import ImageInputSpec
from ..types import Array, RawInput, Samples
from .fit import place
from .kind import IN_FULL, InputLimits, Size, describe, refuse
from .picture import FORMATS, NoPicture, Picture, check_size, read_picture
from .staging import Staging

ALLOWED = f"an image as {', '.join(FORMATS)}, or a tensor uint8 [height, width, 1 or 3]"

SCALED_MARGINS = {"bilinear": 1.9, "bicubic": 2.0, "lanczos": 2.0, "hamming": 2.5}
"""A scaled JPEG is larger than what it is resized to by so much, or of photographs differs from one in full by more than 1/255 on
average; the other ways, which look at pixels one by one, take it in full."""
MIN_SCALED = 16
"""Pixels; below it there is nothing to gain."""
MAX_GROWTH = 16
"""A picture that is resized before it is cut may take so many times the member's pixels, or what any image may."""


class ImageInput:
    """An image input of one member; decoded, it is a picture that knows nothing of members."""

    def __init__(self, key: str, name: str, spec: ImageInputSpec, folder: Path, limits: InputLimits) -> None:
        """Take the spec; nothing is read."""
        self.name = name
        self.staging: tuple[Staging, ...] = (Staging("pixels", torch.uint8, (*spec.size, spec.channels)),)
        self.tensor_dtype = "uint8"
        self.tensor_shape: tuple[int, ...] = (-1, -1, spec.channels)
        self.max_tokens = 0
        self.max_samples = 1
        self.is_pair = False
        self._spec = spec
        self._max_pixels = limits.max_image_pixels
        self._resampling = Image.Resampling[spec.resize.upper()]
        self.at_least: Size = _least_size(spec)
        self._mean = torch.tensor(spec.mean).view(-1, 1, 1) if spec.mean else None
        self._std = torch.tensor(spec.std).view(-1, 1, 1) if spec.std else None
        # Pillow has one limit for the whole process; it must not refuse, or warn of, what ours lets pass.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, self._max_pixels)

    def decode(self, value: RawInput, at_least: Size = IN_FULL) -> Picture:
        """Decode to 8-bit grey or RGB, upright and opaque; raises InvalidInput."""
        if isinstance(value, (str, tuple)):
            raise refuse(self.name, describe(value), ALLOWED)
        try:
            return read_picture(value, self._max_pixels, at_least) if isinstance(value, bytes) else self._read_pixels(value)
        except NoPicture as fault:
            raise refuse(self.name, fault.found, fault.allowed or ALLOWED) from None

    def prepare(self, decoded: Picture) -> Samples:
        """Convert, resize and place, each only where needed, to uint8 [1, height, width, channels]; raises InvalidInput."""
        picture = decoded if self._spec.channels == 3 else decoded.in_grey()
        placement = place(self._spec, picture.height, picture.width)
        pixels = placement.height * placement.width
        if pixels > max(self._max_pixels, MAX_GROWTH * math.prod(self._spec.size)):
            found = f"an image of {picture.width} x {picture.height} pixels, {placement.width} x {placement.height} when resized"
            raise refuse(self.name, found, f"at most {self._max_pixels} pixels")
        resized = picture.resized(placement.height, placement.width, self._resampling)
        laid = placement.lay(resized, (self._spec.size[0], self._spec.size[1]), self._spec.pad_color)
        samples = laid if laid.shape[2] == self._spec.channels else laid.repeat(3, axis=2)
        return (samples[np.newaxis],)

    def is_light(self, value: RawInput) -> bool:
        """Whether to decode at once: no image, not even a decoded one, which may have to be resized."""
        return False

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a picture of noise."""
        return (np.random.default_rng(seed).integers(0, 256, (1, *self.staging[0].shape), dtype=np.uint8),)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn uint8 [n, h, w, c] into one float32 [n, c, h, w], contiguous: (x / 255 - mean) / std."""
        pixels = staged[0].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self._mean is not None:
            pixels.sub_(self._mean)
        if self._std is not None:
            pixels.div_(self._std)
        return (pixels,)

    def to(self, device: torch.device) -> None:
        """Move mean and std."""
        self._mean = None if self._mean is None else self._mean.to(device)
        self._std = None if self._std is None else self._std.to(device)

    def _read_pixels(self, value: Array) -> Picture:
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] not in (1, 3) or value.size == 0:
            raise NoPicture(describe(value))
        height, width = value.shape[:2]
        check_size(width, height, self._max_pixels)
        return Picture(np.ascontiguousarray(value), height, width)


def _least_size(spec: ImageInputSpec) -> Size:
    """Find how large a scaled picture must be, at least, so that it is as good as the one in full."""
    margin = SCALED_MARGINS.get(spec.resize)
    if margin is None or not spec.scaled_decoding:
        return IN_FULL
    resized = spec.crop_from if spec.fit == "crop" else spec.size
    height, width = resized if isinstance(resized, list) else (resized, resized)
    return max(MIN_SCALED, math.ceil(margin * height)), max(MIN_SCALED, math.ceil(margin * width))

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
from .kind import IN_FULL, BufferSpec, InputLimits, Size, describe, refuse
from .picture import ALLOWED, Picture, check_size, read_picture
from .signature import name_base64

SCALED_MARGINS = {"bilinear": 1.9, "bicubic": 2.0, "lanczos": 2.0, "hamming": 2.5}
"""A scaled JPEG is larger than what it is resized to by so much, or of photographs differs from one in full by more than 1/255 on
average; the other ways, which look at pixels one by one, take it in full."""
MAX_GROWTH = 16
"""A picture that is resized before it is cut may take so many times the member's pixels, or what any image may."""


class ImageInput:
    """An image input of one member; decoded, it is a picture that does not depend on the member's spec."""

    def __init__(self, key: str, name: str, spec: ImageInputSpec, folder: Path, limits: InputLimits, device: torch.device) -> None:
        """Take the spec; no file is read. Mean and std go to `device`."""
        self.name = name
        self.buffers: tuple[BufferSpec, ...] = (BufferSpec("pixels", torch.uint8, (*spec.size, spec.channels)),)
        self.tensor_dtype = "uint8"
        self.tensor_shape: tuple[int, ...] = (-1, -1, spec.channels)
        self.max_samples = 1
        self.min_size: Size = _find_min_size(spec)
        self.spec = spec
        self.device = device
        self._max_pixels = limits.max_image_pixels
        self._resampling = Image.Resampling[spec.resize.upper()]
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1) if values else None for values in (spec.mean, spec.std)
        )
        # Pillow has one limit for the whole process; it must not refuse, or warn of, what ours lets pass.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, self._max_pixels)

    def decode(self, value: RawInput, min_size: Size = IN_FULL) -> Picture:
        """Decode to 8-bit grey or RGB, upright and opaque; raises InvalidInput."""
        if isinstance(value, bytes):
            return read_picture(self.name, value, self._max_pixels, min_size)
        if isinstance(value, str) and (seems := name_base64(value)):
            raise refuse(self.name, seems, ALLOWED)
        if isinstance(value, (str, tuple)) or value.dtype != np.uint8 or value.shape[2:] not in ((1,), (3,)) or value.size == 0:
            raise refuse(self.name, describe(value), ALLOWED)
        height, width = value.shape[:2]
        check_size(self.name, width, height, self._max_pixels)
        return Picture(np.ascontiguousarray(value), height, width)

    def prepare(self, decoded: Picture) -> Samples:
        """Convert, resize and place, each only where needed, to uint8 [1, height, width, channels]; raises InvalidInput."""
        picture = decoded if self.spec.channels == 3 else decoded.in_grey()
        height, width = _find_resized(self.spec, picture.height, picture.width)
        if height * width > max(self._max_pixels, MAX_GROWTH * math.prod(self.spec.size)):
            found = f"an image of {picture.width} x {picture.height} pixels, {width} x {height} when resized"
            raise refuse(self.name, found, f"at most {self._max_pixels} pixels")
        pixels = picture.resized(height, width, self._resampling)
        if [height, width] != self.spec.size:
            pixels = _lay(self.spec, pixels)
        if pixels.shape[2] < self.spec.channels:
            pixels = pixels.repeat(3, axis=2)
        return (pixels[np.newaxis],)

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a picture of noise."""
        return (np.random.default_rng(seed).integers(0, 256, (1, *self.buffers[0].shape), dtype=np.uint8),)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn uint8 [samples, h, w, c] into one float32 [samples, c, h, w], contiguous: (x / 255 - mean) / std.

        Callers' colours are red, green and blue; a "bgr" member gets blue first, and its mean and std are in that order.
        """
        planes = staged[0].permute(0, 3, 1, 2)
        planes = planes.flip(1) if self.spec.color == "bgr" else planes
        pixels = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self._mean is not None:
            pixels.sub_(self._mean)
        if self._std is not None:
            pixels.div_(self._std)
        return (pixels,)


def _find_resized(spec: ImageInputSpec, height: int, width: int) -> Size:
    """Find the size to which a picture of `height` x `width` pixels is resized before it is cut or gets bars.

    Sources: torchvision's `Resize`, whose longer edge is rounded down; for "pad" `LetterBox` of Ultralytics, which scales until a
    pair of edges meets the canvas.
    """
    if spec.fit == "stretch":
        return spec.size[0], spec.size[1]
    if spec.fit == "pad":
        scale = min(spec.size[0] / height, spec.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    if isinstance(spec.crop_from, list):
        return spec.crop_from[0], spec.crop_from[1]
    shorter = min(height, width)
    return int(spec.crop_from * height / shorter), int(spec.crop_from * width / shorter)


def _lay(spec: ImageInputSpec, pixels: Array) -> Array:
    """Lay a resized picture, uint8 [height, width, channels], on the member's canvas: cut off outside, with bars where it ends."""
    top, left = (_find_corner(spec, has, wanted) for has, wanted in zip(pixels.shape[:2], spec.size, strict=True))
    visible = pixels[max(0, -top) :, max(0, -left) :][: spec.size[0], : spec.size[1]]
    canvas = np.full((*spec.size, pixels.shape[2]), spec.pad_color, dtype=np.uint8)
    canvas[max(0, top) :, max(0, left) :][: visible.shape[0], : visible.shape[1]] = visible
    return canvas


def _find_corner(spec: ImageInputSpec, has: int, wanted: int) -> int:
    """Find the corner of a picture that is `has` pixels long on a canvas that is `wanted` long; below 0 it is cut off.

    Sources: torchvision's `CenterCrop`; for "floor" transformers' `center_crop`, which rounds the other way where there are bars.
    """
    if spec.pad_place == "corner":
        return 0
    if spec.crop_offset == "floor":
        return -((has - wanted) // 2)
    return (wanted - has) // 2 if wanted > has else -round((has - wanted) / 2)


def _find_min_size(spec: ImageInputSpec) -> Size:
    """Find how large a scaled JPEG must be, at least, so that it is as good as the one in full."""
    margin = SCALED_MARGINS.get(spec.resize)
    if margin is None or not spec.scaled_decoding:
        return IN_FULL
    resized = spec.crop_from if spec.fit == "crop" else spec.size
    height, width = resized if isinstance(resized, list) else (resized, resized)
    return math.ceil(margin * height), math.ceil(margin * width)

"""Fits: how a picture of any shape becomes one of the member's size."""

from dataclasses import dataclass

import numpy as np

from ..spec import ImageInputSpec
from ..types import Array


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies on the member's canvas: resized to `height` and `width`, its upper left corner at (`top`, `left`).

    All in pixels. A corner below 0 lies outside: what is outside is cut off; where the picture does not reach, there are bars.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0

    def lay(self, pixels: Array, size: tuple[int, int], color: int) -> Array:
        """Lay the resized picture, uint8 [height, width, channels], on a canvas of `size`, bars in grey of `color`."""
        if (self.top, self.left, *pixels.shape[:2]) == (0, 0, *size):
            return pixels
        canvas = np.full((*size, pixels.shape[2]), color, dtype=np.uint8)
        (down, from_row), (across, from_column) = _overlap(self.top, self.height, size[0]), _overlap(self.left, self.width, size[1])
        canvas[down, across] = pixels[from_row, from_column]
        return canvas


def place(spec: ImageInputSpec, height: int, width: int) -> Placement:
    """Place a picture of `height` x `width` pixels as `spec.fit` says."""
    if spec.fit == "crop":
        return _place_crop(spec, height, width)
    if spec.fit == "pad":
        return _place_between_bars(spec, height, width)
    return Placement(*spec.size)


def _place_crop(spec: ImageInputSpec, height: int, width: int) -> Placement:
    """Resize and cut the middle out; source: torchvision's `Resize`, whose longer edge is rounded down, and `CenterCrop`."""
    resize_to = spec.crop_from
    if isinstance(resize_to, list):
        resized = resize_to
    else:
        shorter = min(height, width)
        resized = [int(resize_to * height / shorter), int(resize_to * width / shorter)]
    return Placement(*resized, *(_middle(spec, has, wanted) for has, wanted in zip(resized, spec.size, strict=True)))


def _middle(spec: ImageInputSpec, has: int, wanted: int) -> int:
    """Find the corner of a picture that is `has` pixels long so that the canvas, `wanted` long, shows its middle."""
    if wanted > has:
        return (wanted - has) // 2
    return -((has - wanted) // 2 if spec.crop_offset == "floor" else round((has - wanted) / 2))


def _place_between_bars(spec: ImageInputSpec, height: int, width: int) -> Placement:
    """Scale until a pair of edges meets the canvas; source: `LetterBox` of Ultralytics."""
    scale = min(spec.size[0] / height, spec.size[1] / width)
    resized = [max(1, round(height * scale)), max(1, round(width * scale))]
    if spec.pad_place == "corner":
        return Placement(*resized)
    return Placement(*resized, *((wanted - has) // 2 for has, wanted in zip(resized, spec.size, strict=True)))


def _overlap(corner: int, length: int, canvas: int) -> tuple[slice, slice]:
    """Say which part of the canvas the picture covers, along one edge, and with which part of itself."""
    first, last = max(0, corner), min(canvas, corner + length)
    return slice(first, last), slice(first - corner, last - corner)

"""Images: encoded bytes or ready pixels in, float32 [samples, channels, height, width] to the member.

How pictures that are not plain 8-bit grey or RGB are read:

- EXIF (and TIFF) orientation is applied, so that the member sees the picture upright; damaged EXIF is ignored.
- Transparency is laid on white, so that what lies hidden beneath it cannot sway the member.
- 16-bit grey is scaled to 8 bits and rounded; of 16-bit colour the upper 8 bits are taken.
- Palettes, CMYK, YCbCr and bilevel become RGB or grey by Pillow's own formulas; colour profiles are not applied.
- Integers and floats of 32 bits have no agreed range and are refused.
- Of an animation the first frame is taken.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..rows import Array, RawInput, Samples
from ..spec import ImageInputSpec
from .kind import InputLimits, describe, refuse
from .staging import Staging

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALLOWED = f"an image as {', '.join(FORMATS)}, or a tensor uint8 [height, width, 1 or 3]"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageInput:
    """An image input of one member; decoded, it is a Pillow image of mode "L" or "RGB"."""

    def __init__(self, key: str, name: str, spec: ImageInputSpec, folder: Path, limits: InputLimits) -> None:
        """Take the spec; nothing is read."""
        self.name = name
        self.staging: tuple[Staging, ...] = (Staging("pixels", torch.uint8, (*spec.size, spec.channels)),)
        self.tensor_dtype = "uint8"
        self.tensor_shape: tuple[int, ...] = (-1, -1, spec.channels)
        self.max_tokens = 0
        self.max_samples = 1
        self.is_pair = False
        self._max_pixels = limits.max_image_pixels
        self._mode = "RGB" if spec.channels == 3 else "L"
        self._size = (spec.size[1], spec.size[0])
        self._resampling = Image.Resampling[spec.resize.upper()]
        self._mean = torch.tensor(spec.mean).view(-1, 1, 1) if spec.mean else None
        self._std = torch.tensor(spec.std).view(-1, 1, 1) if spec.std else None
        # Pillow has one limit for the whole process; it must not refuse, or warn of, what ours lets pass.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, self._max_pixels)

    def decode(self, value: RawInput) -> Image.Image:
        """Decode to 8-bit grey or RGB, upright and opaque; raises InvalidInput."""
        if isinstance(value, bytes):
            return self._decode_bytes(value)
        if isinstance(value, (str, tuple)):
            raise refuse(self.name, describe(value), ALLOWED)
        return self._decode_pixels(value)

    def prepare(self, decoded: Image.Image) -> Samples:
        """Convert and resize, each only where needed, to uint8 [1, height, width, channels].

        The picture is stretched to the size, not cropped; "bilinear" and above look at every source pixel (antialias).
        """
        image = decoded if decoded.mode == self._mode else decoded.convert(self._mode)
        if image.size != self._size:
            image = image.resize(self._size, self._resampling)
        return (np.asarray(image).reshape(1, *self.staging[0].shape),)

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

    def _decode_pixels(self, value: Array) -> Image.Image:
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] not in (1, 3) or value.size == 0:
            raise refuse(self.name, describe(value), ALLOWED)
        self._check_size(value.shape[1], value.shape[0])
        return Image.fromarray(value[:, :, 0] if value.shape[2] == 1 else value)

    def _decode_bytes(self, content: bytes) -> Image.Image:
        if not content:
            raise refuse(self.name, "no bytes", ALLOWED)
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise refuse(self.name, "a larger image", f"at most {self._max_pixels} pixels") from None
        except Exception:  # Pillow's readers raise what the bytes make them stumble over, of any class
            raise refuse(self.name, f"{len(content)} bytes that are no image, or only its beginning", ALLOWED) from None
        self._check_size(*image.size)
        try:
            image.load()
            return _to_plain(_turn_upright(image))
        except _NoAgreedRange:
            raise refuse(self.name, f"32-bit pixels (mode {image.mode})", "8 or 16 bits per channel") from None
        except Exception as error:
            raise refuse(self.name, f"a truncated or damaged {image.format} ({error})", "a whole image") from None

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise refuse(self.name, f"an image of {width} x {height} pixels", f"at most {self._max_pixels} pixels")


class _NoAgreedRange(Exception):
    """Pixels whose black and white nobody has said."""


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a photograph with damaged EXIF is still a photograph
        return image
    return image if method is None else image.transpose(method)


def _to_plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise _NoAgreedRange
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")

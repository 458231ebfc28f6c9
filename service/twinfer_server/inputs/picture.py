"""Pictures: encoded bytes in, upright and opaque 8-bit pixels out.

How pictures that are not plain 8-bit grey or RGB are read:

- EXIF (and TIFF) orientation is applied, so that the member sees the picture upright; damaged EXIF is ignored.
- Transparency is laid on white, so that what lies hidden beneath it cannot sway the member.
- 16-bit grey is scaled to 8 bits and rounded; of 16-bit colour the upper 8 bits are taken.
- Palettes, CMYK, YCbCr and bilevel become RGB or grey by Pillow's own formulas; colour profiles are not applied.
- Integers and floats of 32 bits have no agreed range and are refused.
- Of an animation the first frame is taken.
"""

import io
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.nn import functional

from ..types import Array
from .jpeg import decode_jpeg
from .kind import Size

JPEGS = ("JPEG", "MPO")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class NoPicture(Exception):
    """What was sent cannot be seen; says what it is, and what would be allowed (empty: any picture)."""

    def __init__(self, found: str, allowed: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture of `height` x `width` pixels, upright and opaque.

    `pixels` is uint8 [rows, columns, 1 or 3], and shows the picture at 1 / `scale` of its size: beyond 1 the last row and column
    may reach over the picture's edge.
    """

    pixels: Array
    height: int
    width: int
    scale: int = 1

    def in_grey(self) -> "Picture":
        """Convert to grey, by ITU-R 601."""
        if self.pixels.shape[2] == 1:
            return self
        grey = np.array(Image.fromarray(self.pixels).convert("L"))[:, :, np.newaxis]
        return Picture(grey, self.height, self.width, self.scale)

    def resized(self, height: int, width: int, how: Image.Resampling) -> Array:
        """Resize to uint8 [height, width, channels], as Pillow does.

        RGB is resized bilinearly by torch: the same formula, several times as fast, with coarser weights, so to within 1. (Of noise
        one value in ten million is off by 2.) Its bicubic resizing of uint8 is off by far more where contrasts are high.
        """
        if self.pixels.shape[:2] == (height, width) and self.scale == 1:
            return self.pixels
        if self.pixels.shape[2] == 3 and how is Image.Resampling.BILINEAR:
            return self._resize_with_torch(height, width)
        image = Image.fromarray(self.pixels if self.pixels.shape[2] == 3 else self.pixels[:, :, 0])
        edges = (0, 0, self.width / self.scale, self.height / self.scale)
        return np.asarray(image.resize((width, height), how, edges)).reshape(height, width, -1)

    def _resize_with_torch(self, height: int, width: int) -> Array:
        pixels = self.pixels if self.pixels.flags.writeable else self.pixels.copy()  # torch warns of memory that is not its own
        planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
        resize = partial(functional.interpolate, planes, mode="bilinear", antialias=True)
        if self.height % self.scale or self.width % self.scale:
            # Told the size, torch would take the last row and column for whole; told the factors, it rounds the size down.
            down, across = ((to + 1e-6) * self.scale / size for to, size in ((height, self.height), (width, self.width)))
            resized = resize(scale_factor=(down, across), recompute_scale_factor=False)
        else:
            resized = resize(size=(height, width))
        array: Array = resized[0].permute(1, 2, 0).numpy()
        return array


def read_picture(content: bytes, max_pixels: int, at_least: Size) -> Picture:
    """Decode; a JPEG that is far larger than `at_least` may come scaled. Raises NoPicture."""
    if not content:
        raise NoPicture("no bytes")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NoPicture("a larger image", f"at most {max_pixels} pixels") from None
    except Exception:  # Pillow's readers raise what the bytes make them stumble over, of any class
        raise NoPicture(f"{len(content)} bytes that are no image, or only its beginning") from None
    check_size(*image.size, max_pixels)
    if image.mode in ("I", "F"):
        raise NoPicture(f"32-bit pixels (mode {image.mode})", "8 or 16 bits per channel")
    scaled = _decode_jpeg(content, image, at_least) if image.format in JPEGS else None
    if scaled is not None:
        return scaled
    try:
        image.load()
        pixels = _turn_upright(_to_plain(image), _read_orientation(image))
    except Exception as error:
        raise NoPicture(f"a truncated or damaged {image.format} ({error})", "a whole image") from None
    return Picture(pixels, *pixels.shape[:2])


def _decode_jpeg(content: bytes, image: Image.Image, at_least: Size) -> Picture | None:
    orientation = _read_orientation(image)
    is_sideways = orientation >= 5
    found = decode_jpeg(content, image, at_least[::-1] if is_sideways else at_least, is_turned=orientation > 1)
    if found is None:
        return None
    pixels, scale = found
    height, width = image.size if is_sideways else image.size[::-1]
    return Picture(_turn_upright(pixels, orientation), height, width, scale)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise NoPicture for a picture over the limit."""
    if width * height > max_pixels:
        raise NoPicture(f"an image of {width} x {height} pixels", f"at most {max_pixels} pixels")


def _read_orientation(image: Image.Image) -> int:
    """Give the EXIF orientation, 1 (upright) to 8."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a photograph with damaged EXIF is still a photograph
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turn_upright(pixels: Array, orientation: int) -> Array:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_plain(image: Image.Image) -> Array:
    """Give 8-bit pixels, uint8 [height, width, 1 or 3]."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)[:, :, np.newaxis]
        return ((wide + 128) // 257).astype(np.uint8)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return np.array(page.convert("RGB"))
    mode = "L" if image.mode in ("1", "L") else "RGB"
    plain = image if image.mode == mode else image.convert(mode)
    # Not by NumPy's way to ask an image for its pixels, which copies them twice.
    return np.frombuffer(plain.tobytes(), dtype=np.uint8).reshape(plain.height, plain.width, -1)

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

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.nn import functional

from ..types import Array
from .kind import Size, refuse

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALLOWED = f"an image as {', '.join(FORMATS)}, or a tensor uint8 [height, width, 1 or 3]"
JPEGS = ("JPEG", "MPO")
JPEG_SCALES = (8, 4, 2)
"""What libjpeg-turbo decodes faster than the whole picture, as it has vector code for these; the largest first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture of `height` x `width` pixels, upright and opaque.

    `pixels` is uint8 [height / scale, width / scale, 1 or 3], both rounded up: where `scale` does not divide them, the last row
    and column reach over the picture's edge.
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
        has_whole_edges = self.height % self.scale == 0 == self.width % self.scale
        if self.pixels.shape[2] == 3 and how is Image.Resampling.BILINEAR and has_whole_edges:
            return _resize_bilinearly(self.pixels, height, width)
        image = Image.fromarray(self.pixels if self.pixels.shape[2] == 3 else self.pixels[:, :, 0])
        edges = (0, 0, self.width / self.scale, self.height / self.scale)
        return np.asarray(image.resize((width, height), how, edges)).reshape(height, width, -1)


def read_picture(name: str, content: bytes, max_pixels: int, min_size: Size) -> Picture:
    """Decode what was sent as the input `name`; a JPEG that is far larger than `min_size` may come scaled. Raises InvalidInput."""
    if not content:
        raise refuse(name, "no bytes", ALLOWED)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise refuse(name, "a larger image", f"at most {max_pixels} pixels") from None
    except Exception:  # Pillow's readers raise what the bytes make them stumble over, of any class
        raise refuse(name, f"{len(content)} bytes that are no image, or only its beginning", ALLOWED) from None
    width, height = image.size
    check_size(name, width, height, max_pixels)
    if image.mode in ("I", "F"):
        raise refuse(name, f"32-bit pixels (mode {image.mode})", "8 or 16 bits per channel")
    scale = _find_scale(image, min_size) if image.format in JPEGS else 1
    try:
        if scale > 1:
            image.draft(None, (width // scale, height // scale))
        image.load()
        orientation = _read_orientation(image)  # not before: Pillow turns a TIFF itself while loading
        pixels = _turn_upright(_to_plain(image), orientation)
    except Exception as error:
        raise refuse(name, f"a truncated or damaged {image.format} ({error})", "a whole image") from None
    if scale == 1:
        return Picture(pixels, *pixels.shape[:2])
    return Picture(pixels, *((width, height) if orientation >= 5 else (height, width)), scale)


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raise InvalidInput for a picture over the limit."""
    if width * height > max_pixels:
        raise refuse(name, f"an image of {width} x {height} pixels", f"at most {max_pixels} pixels")


def _find_scale(image: Image.Image, min_size: Size) -> int:
    """Find the largest scale at which a JPEG still has `min_size`; 1 if it is to be decoded in full.

    One that will be turned has no part of a pixel at its edge, which would then be the wrong edge.
    """
    width, height = image.size
    orientation = _read_orientation(image)
    least_height, least_width = min_size[::-1] if orientation >= 5 else min_size
    for scale in JPEG_SCALES:
        is_enough = height >= scale * least_height and width >= scale * least_width
        if is_enough and (orientation == 1 or height % scale == 0 == width % scale):
            return scale
    return 1


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8."""
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
    """Convert to 8-bit pixels, uint8 [height, width, 1 or 3]."""
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


def _resize_bilinearly(pixels: Array, height: int, width: int) -> Array:
    writeable = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of memory that it must not write to
    planes = torch.from_numpy(writeable).permute(2, 0, 1).unsqueeze(0)
    resized = functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    array: Array = resized[0].permute(1, 2, 0).numpy()
    return array

"""Pictures: encoded bytes in, upright and opaque 8-bit pixels out.

How pictures that are not plain 8-bit grey or RGB are read:

- EXIF (and TIFF) orientation is applied, so that the member sees the picture upright; damaged EXIF is ignored.
- Transparency is laid on white, so that what lies hidden beneath it cannot sway the member. A transparent grey or colour is
  compared at the file's own depth; of 16-bit colour, which Pillow cuts to 8 bits, that cannot be done, and it is refused.
- 12-bit and 16-bit grey is scaled to 8 bits and rounded, white as the file says; of 16-bit colour the upper 8 bits are taken.
- Palettes, CMYK, YCbCr and bilevel become RGB or grey by Pillow's own formulas; colour profiles are not applied.
- Integers and floats of 32 bits, and numbers with a sign, have no agreed range and are refused.
- Of an animation the first frame is taken, and of a TIFF the first page.
- A PNG's texts and colour profile are left out unread, so that they cost nothing, whatever they inflate to.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile
from torch.nn import functional

from ..types import Array
from .decoding_cost import TooCostly, decoding, leave_metadata_out
from .kind import Size, refuse
from .signature import name_format

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
ALLOWED = f"an image as {', '.join(FORMATS)}, or a tensor uint8 [height, width, 1 or 3]"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What brings a picture of each EXIF orientation upright."""


class UnagreedSamples(ValueError):
    """Pixels of which nobody can say how bright they are: says what was found."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many bits a sample of a file has, and whether 0 is white in it."""

    bits: int
    is_white_zero: bool


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

        RGB is shrunk bilinearly by torch: the same formula, several times as fast, with coarser weights, so to within 1. (Of noise
        one value in ten million is off by 2.) Its bicubic resizing of uint8 is off by far more where contrasts are high, and where
        it enlarges, its bilinear one is off by 2 more often.
        """
        pixels, is_rgb = self.pixels, self.pixels.shape[2] == 3
        if pixels.shape[:2] == (height, width) and self.scale == 1:
            return pixels
        is_shrunk = height <= pixels.shape[0] and width <= pixels.shape[1]
        is_whole = self.height % self.scale == 0 == self.width % self.scale
        if is_rgb and how is Image.Resampling.BILINEAR and is_shrunk and is_whole:
            writeable = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of memory that it must not write to
            planes = torch.from_numpy(writeable).permute(2, 0, 1).unsqueeze(0)
            planes = functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
            return np.asarray(planes[0].permute(1, 2, 0))
        image = Image.fromarray(pixels if is_rgb else pixels[:, :, 0])
        edges = (0, 0, self.width / self.scale, self.height / self.scale)
        return np.asarray(image.resize((width, height), how, edges)).reshape(height, width, -1)


def read_picture(name: str, content: bytes, max_pixels: int, min_size: Size) -> Picture:
    """Decode what was sent as the input `name`; a JPEG that is far larger than `min_size` may come scaled. Raises InvalidInput."""
    if not content:
        raise refuse(name, "no bytes", ALLOWED)
    image = _open(name, content, max_pixels)
    image_size = width, height = image.size
    check_size(name, width, height, max_pixels)
    try:
        depth = _read_depth(image, content)
        scale = _scale_down(image, min_size)
        with decoding(image, content, max_pixels):
            image.load()
        orientation = _read_orientation(image)  # not before: Pillow turns a TIFF itself while loading
        pixels = _to_plain(image.transpose(TURNS[orientation]) if orientation > 1 else image, depth)
    except UnagreedSamples as error:
        raise refuse(name, str(error), "8 or 16 bits per channel, pixel by pixel, opaque or with an alpha channel") from None
    except TooCostly as error:
        raise refuse(name, str(error), error.allowed) from None
    except Exception as error:
        raise refuse(name, f"a truncated or damaged {image.format} ({error})", "a whole image") from None
    return Picture(pixels, *(image_size if orientation >= 5 else image_size[::-1]), scale)


def _open(name: str, content: bytes, max_pixels: int) -> Image.Image:
    """Open a file of an allowed format, and decode nothing yet; raises InvalidInput that says what the bytes seem to be."""
    try:
        return Image.open(io.BytesIO(leave_metadata_out(content)), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise refuse(name, "a larger image", f"at most {max_pixels} pixels") from None
    except Exception as error:  # Pillow's readers raise what the bytes make them stumble over, of any class
        seems = name_format(content)
        if seems in FORMATS:
            why = _find_cause(seems, content) if isinstance(error, UnidentifiedImageError) else error
            found = f"{len(content)} bytes that begin as {seems} and cannot be read, or are only its beginning ({why})"
        elif seems:
            found = f"{len(content)} bytes that are no image of these formats; they seem to be {seems}"
        else:
            found = f"{len(content)} bytes that are no image, or only its beginning"
        raise refuse(name, found, ALLOWED) from None


def _find_cause(format: str, content: bytes) -> str:
    """Return why Pillow's reader of a format cannot open a file, which `Image.open` keeps to itself."""
    try:
        Image.OPEN[format][0](io.BytesIO(content), "")
    except Exception as error:
        return str(error)
    return "for no known reason"


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raise InvalidInput for a picture over the limit."""
    if width * height > max_pixels:
        raise refuse(name, f"an image of {width} x {height} pixels", f"at most {max_pixels} pixels")


def _scale_down(image: Image.Image, min_size: Size) -> int:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size where that is at least `min_size`; return 2, 4, 8, or 1 for in full.

    One that will be turned has no part of a pixel at its edge, which would then be the wrong edge.
    """
    width, height = image.size
    orientation = _read_orientation(image)
    if orientation > 1 and (width % 8 or height % 8):
        return 1
    drafted = image.draft(None, min_size if orientation >= 5 else min_size[::-1])
    return round(width / drafted[1][2]) if drafted else 1


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a photograph with damaged EXIF is still a photograph
        return 1
    return orientation if orientation in range(1, 9) else 1


def _read_depth(image: Image.Image, content: bytes) -> Depth:
    """Read from a file that is not loaded yet what Pillow does not tell of its samples; raises UnagreedSamples."""
    if image.mode in ("I", "F"):
        raise UnagreedSamples(f"32-bit pixels (mode {image.mode})")
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if set(tags.get(ExifTags.Base.SampleFormat, (1,))) != {1}:
            raise UnagreedSamples("a TIFF of samples with a sign")
        bits = max(tags.get(ExifTags.Base.BitsPerSample, (8,)))
        if bits > 8 and tags.get(ExifTags.Base.PlanarConfiguration) == 2:
            raise UnagreedSamples(f"a TIFF whose channels, of {bits} bits, lie on planes")  # of which Pillow mixes the bytes
        return Depth(bits, is_white_zero=tags.get(ExifTags.Base.PhotometricInterpretation) == 0)
    if image.format != "PNG":
        return Depth(8, is_white_zero=False)
    bits = content[24]  # of the header, which comes first
    if bits == 16 and image.mode == "RGB" and "transparency" in image.info:
        raise UnagreedSamples("a PNG of 16-bit colour of which one is transparent")
    return Depth(bits, is_white_zero=False)


def _to_plain(image: Image.Image, depth: Depth) -> Array:
    """Convert to 8-bit pixels, uint8 [height, width, 1 or 3]."""
    highest = 2**depth.bits - 1
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)[:, :, np.newaxis]
        shown = highest - wide if depth.is_white_zero else wide
        grey = ((shown * 255 + highest // 2) // highest).astype(np.uint8)
        return grey if key is None else np.where(wide == key, np.uint8(255), grey)
    if image.mode == "L" and isinstance(key, int) and depth.bits < 8:
        image.info["transparency"] = (key & highest) * (255 // highest)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return np.array(page.convert("RGB"))
    mode = "L" if image.mode in ("1", "L") else "RGB"
    plain = image if image.mode == mode else image.convert(mode)
    # Not by NumPy's way to ask an image for its pixels, which copies them twice.
    return np.frombuffer(plain.tobytes(), dtype=np.uint8).reshape(plain.height, plain.width, -1)

"""JPEG, the costliest thing on the host: decoded by libjpeg-turbo itself, at a part of its size where that is enough."""

import simplejpeg
from PIL import Image

from ..types import Array
from .kind import Size

SCALES = (8, 4, 2)
"""Others would be slower than decoding in full: libjpeg-turbo has vector code for these alone."""


def decode_jpeg(content: bytes, image: Image.Image, at_least: Size, is_turned: bool) -> tuple[Array, int] | None:
    """Decode, without holding other threads up, to (uint8 [height / scale, width / scale, 1 or 3], rounded up, and the scale).

    `image` is the file as Pillow has opened it. Gives None for CMYK and for damaged files: there Pillow decides.
    No picture shows less than `at_least`. One that will be turned shows no part of a pixel, which would then lie at the wrong edge.
    """
    colorspace = {"L": "GRAY", "RGB": "RGB"}.get(image.mode)
    if colorspace is None:
        return None
    width, height = image.size
    fitting = (
        scale
        for scale in SCALES
        if height >= scale * at_least[0] and width >= scale * at_least[1] and not (is_turned and (height % scale or width % scale))
    )
    scale = next(fitting, 1)
    try:
        if simplejpeg.decode_jpeg_header(content)[:2] != (height, width):
            return None  # the two readers see different files: the limits were checked for Pillow's
        pixels: Array = simplejpeg.decode_jpeg(
            content, colorspace, min_height=-(-height // scale), min_width=-(-width // scale)
        )  # fmt: skip
        return pixels, scale
    except ValueError:
        return None

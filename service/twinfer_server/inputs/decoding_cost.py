"""What a file makes its decoder do beyond the pixels that it says it has, which are limited elsewhere.

- A JPEG may go over all its pixels once for each scan, and a scan that changes nothing takes a hundred bytes: so scans are counted.
- A TIFF's tile is decoded whole, however small the picture is that lies on it: so tiles have the limit of pictures.
- An AVIF's picture has the size that its container says, and is decoded at that of its stream, up to 2^28 pixels: so one is
  decoded at a time, on as many threads as there are cores.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION, ROWSPERSTRIP, TILELENGTH, TILEWIDTH, TiffImageFile

MAX_SCANS = 64
"""Of a picture, previews in its metadata included; encoders write ten or so."""
MAX_TILE_PIXELS = 2**20
"""A tile may always have so many."""
_SCAN = b"\xff\xda"
_JPEGS_IN_TIFF = (6, 7)

_one_avif = threading.Lock()


class TooCostly(ValueError):
    """A file that costs far more to decode than its pixels: says what was found, and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found)
        self.allowed = allowed


@contextmanager
def decoding(image: Image.Image, content: bytes, max_pixels: int) -> Iterator[None]:
    """Have a file decoded in the body, in its turn if there is one; raises TooCostly before that."""
    if isinstance(image, TiffImageFile):
        _check_tiff(image, content, max_pixels)
    elif image.format in ("JPEG", "MPO"):
        _check_scans(content, 1)
    if image.format == "AVIF":
        with _one_avif:
            yield
    else:
        yield


def _check_scans(content: bytes, parts: int) -> None:
    """Refuse more scans than `parts` pictures, which share the pixels between them, may have."""
    scans, most = content.count(_SCAN), MAX_SCANS * parts  # inside of a scan these bytes never stand
    if scans > most:
        raise TooCostly(f"a JPEG of {scans} scans", f"at most {most}")


def _check_tiff(image: TiffImageFile, content: bytes, max_pixels: int) -> None:
    tags, (width, height) = image.tag_v2, image.size
    tile_width, tile_height = tags.get(TILEWIDTH, width), tags.get(TILELENGTH, tags.get(ROWSPERSTRIP, height))
    if TILEWIDTH in tags and tile_width * tile_height > (most := max(max_pixels, MAX_TILE_PIXELS)):
        raise TooCostly(f"a TIFF with tiles of {tile_width} x {tile_height} pixels", f"tiles of at most {most} pixels")
    if tags.get(COMPRESSION) in _JPEGS_IN_TIFF:
        _check_scans(content, math.ceil(width / max(1, tile_width)) * math.ceil(height / max(1, tile_height)))

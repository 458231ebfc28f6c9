"""What a file makes its decoder do beyond the pixels that it says it has, which are limited elsewhere.

- A PNG's texts and colour profile are inflated, every one that it has: so they are left out.
- A JPEG may go over all its pixels once for each scan, and a scan that changes nothing takes a hundred bytes: so scans are counted.
- A TIFF's tile is decoded whole, however small the picture is that lies on it: so tiles have the limit of pictures.
- An AVIF's picture has the size that its container says, and is decoded at that of its stream, up to 2^28 pixels: so one is
  decoded at a time, on as many threads as there are cores.
"""

import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION, ROWSPERSTRIP, TILELENGTH, TILEWIDTH, TiffImageFile

MAX_SCANS = 64
"""Of a picture, previews in its metadata included; encoders write ten or so."""
MAX_TILE_PIXELS = 2**20
"""A tile may always have so many."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_PNG_CHUNKS = 65_536
MAX_PNG_TEXT_BYTES = 65_536
"""A text that may say which way is up is kept up to this size, packed and inflated; texts that say so have a few hundred bytes."""
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""The keywords of the texts in which Pillow looks for the orientation."""
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


def leave_metadata_out(content: bytes) -> bytes:
    """Return a PNG without its texts and its colour profile, none of which is inflated; any other file as it is.

    Texts that may say which way is up are kept: of each keyword the first, if it is small. Raises ValueError where the file has
    more than `MAX_PNG_CHUNKS` chunks. What is damaged or missing is left for Pillow to tell.
    """
    if not content.startswith(PNG_MAGIC):
        return content
    kept, begin, start, turning = [], 0, len(PNG_MAGIC), set(PNG_TURNING)
    for _ in range(MAX_PNG_CHUNKS):
        if start + 12 > len(content):
            break
        size, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + size
        if kind == b"iCCP" or kind in PNG_TEXTS:
            keyword = content[start + 8 : start + 88].partition(b"\0")[0]
            is_first = keyword in turning
            turning.discard(keyword)
            if not (is_first and _is_small_text(kind, content[start + 8 + len(keyword) + 1 : end - 4])):
                kept.append(content[begin:start])
                begin = end
        start = end
    else:
        raise ValueError(f"more than {MAX_PNG_CHUNKS} chunks")
    return b"".join([*kept, content[begin:]]) if begin else content


def _is_small_text(kind: bytes, value: bytes) -> bool:
    """Whether a text, which is behind its keyword, and what it inflates to are small."""
    if kind == b"zTXt":
        packed = value[1:]
    elif kind == b"iTXt" and value[:1] == b"\x01":
        packed = value[2:].split(b"\0", 2)[-1]
    else:
        packed = b""
    try:
        inflated = zlib.decompressobj().decompress(packed, MAX_PNG_TEXT_BYTES + 1)
    except zlib.error:
        return False
    return max(len(value), len(inflated)) <= MAX_PNG_TEXT_BYTES

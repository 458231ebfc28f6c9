"""PNG's chunks: what of a file is handed to Pillow, which inflates every text and colour profile that a file has."""

import struct
import zlib

MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 65_536
MAX_TEXT_BYTES = 65_536
"""A text that may say which way is up is kept up to this size, packed and inflated; texts that say so have a few hundred bytes."""
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""The keywords of the texts in which Pillow looks for the orientation."""


def leave_metadata_out(content: bytes) -> bytes:
    """Return a PNG without its texts and its colour profile, none of which is inflated; any other file as it is.

    Texts that may say which way is up are kept: of each keyword the first, if it is small. Raises ValueError where the file has
    more than `MAX_CHUNKS` chunks. What is damaged or missing is left for Pillow to tell.
    """
    if not content.startswith(MAGIC):
        return content
    kept, begin, start, turning = [], 0, len(MAGIC), set(TURNING)
    for _ in range(MAX_CHUNKS):
        if start + 12 > len(content):
            break
        size, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + size
        if kind == b"iCCP" or kind in TEXTS:
            keyword = content[start + 8 : start + 88].partition(b"\0")[0]
            is_first = keyword in turning
            turning.discard(keyword)
            if not (is_first and _is_small(kind, content[start + 8 + len(keyword) + 1 : end - 4])):
                kept.append(content[begin:start])
                begin = end
        start = end
    else:
        raise ValueError(f"more than {MAX_CHUNKS} chunks")
    return b"".join([*kept, content[begin:]]) if begin else content


def _is_small(kind: bytes, value: bytes) -> bool:
    """Whether a text, which is behind its keyword, and what it inflates to are small."""
    if kind == b"zTXt":
        packed = value[1:]
    elif kind == b"iTXt" and value[:1] == b"\x01":
        packed = value[2:].split(b"\0", 2)[-1]
    else:
        packed = b""
    try:
        inflated = zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES + 1)
    except zlib.error:
        return False
    return max(len(value), len(inflated)) <= MAX_TEXT_BYTES

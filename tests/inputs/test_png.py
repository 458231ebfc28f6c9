"""PNGs with much beside their pixels are seen as without it, and nothing of it is inflated."""

import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from tests.pictures import encode, make_kind, see
from twinfer_server.errors import InvalidInput
from twinfer_server.inputs.decoding_cost import MAX_PNG_CHUNKS, leave_metadata_out

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PLAIN = encode(Image.fromarray(PIXELS), "PNG")
BEHIND_HEADER, BEFORE_END = 33, len(PLAIN) - 12
LONG = b"the workflow of a node editor, " * 80_000
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
EXIF = b"\nexif\n      28\n4578696600004949" + b"2a0008000000" + b"0100" + b"120103000100000003000000" + b"00000000"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def insert(*chunks: bytes, at: int = BEHIND_HEADER) -> bytes:
    return PLAIN[:at] + b"".join(chunks) + PLAIN[at:]


def write_itxt(keyword: bytes, text: bytes, *, packed: bool) -> bytes:
    return chunk(b"iTXt", keyword + (b"\0\1\0en\0key\0" + zlib.compress(text) if packed else b"\0\0\0en\0key\0" + text))


METADATA = {
    "a long text": insert(chunk(b"tEXt", b"workflow\0" + LONG)),
    "a packed text": insert(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG))),
    "a packed text in Unicode": insert(write_itxt(b"workflow", LONG, packed=True)),
    "a text in Unicode": insert(write_itxt(b"workflow", LONG, packed=False)),
    "a packed text behind the pixels": insert(chunk(b"zTXt", b"w\0\0" + zlib.compress(LONG)), at=BEFORE_END),
    "a hundred packed texts": insert(*(chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1_000_000))) for n in range(100))),
    "a large colour profile": insert(chunk(b"iCCP", b"printer\0\0" + zlib.compress(bytes(1_300_000)))),
    "a damaged colour profile": insert(chunk(b"iCCP", b"x\0\0not packed")),
    "a text whose checksum is wrong": insert(chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
    "a text without a keyword": insert(chunk(b"zTXt", b"")),
    "a packed text of the orientation that explodes": insert(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50_000_000)))
    ),
    "a damaged text of the orientation": insert(chunk(b"zTXt", b"Raw profile type exif\0\0not packed")),
    "XMP in Unicode that explodes": insert(write_itxt(b"XML:com.adobe.xmp", XMP + bytes(2_000_000), packed=True)),
    "XMP that explodes a thousand times": insert(*[write_itxt(b"XML:com.adobe.xmp", bytes(1_000_000), packed=True)] * 1000),
    "XMP a thousand times": insert(*[write_itxt(b"XML:com.adobe.xmp", b" " * 60_000, packed=True)] * 1000),
    "an unknown chunk": insert(chunk(b"prVt", LONG)),
}


@pytest.mark.parametrize("content", METADATA.values(), ids=METADATA)
def test_what_lies_beside_the_pixels_changes_nothing_and_is_not_inflated(content: bytes) -> None:
    kind = make_kind(size=[6, 8])
    see(kind, PLAIN)
    tracemalloc.start()
    try:
        assert np.array_equal(see(kind, content), PIXELS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(content) + 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        write_itxt(b"XML:com.adobe.xmp", XMP, packed=False),
        write_itxt(b"XML:com.adobe.xmp", XMP, packed=True),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF)),
    ],
    ids=["XMP", "packed XMP", "packed EXIF"],
)  # fmt: skip
def test_a_text_that_says_which_way_is_up_is_still_followed(text: bytes) -> None:
    assert np.array_equal(see(make_kind(size=[6, 8]), insert(text)), PIXELS[::-1, ::-1])


def test_exif_in_its_own_chunk_is_still_followed() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "long " * 50_000, zip=True)
    content = encode(Image.fromarray(PIXELS), "PNG", exif=exif, pnginfo=texts)
    assert np.array_equal(see(make_kind(size=[6, 8]), content), PIXELS[::-1, ::-1])


def test_a_file_of_nothing_to_leave_out_is_handed_on_as_it_is() -> None:
    jpeg = encode(Image.fromarray(PIXELS), "JPEG")
    assert leave_metadata_out(PLAIN) is PLAIN
    assert leave_metadata_out(jpeg) is jpeg
    assert leave_metadata_out(insert(chunk(b"tEXt", b"a\0b"))) == PLAIN


def test_more_chunks_than_any_picture_has_are_refused() -> None:
    content = insert(chunk(b"prVt", b"") * MAX_PNG_CHUNKS)
    with pytest.raises(
        InvalidInput,
        match=re.escape(f"bytes that begin as PNG and cannot be read, or are only its beginning (more than {MAX_PNG_CHUNKS}"),
    ):
        see(make_kind(size=[6, 8]), content)

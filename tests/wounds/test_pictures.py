"""Pictures of a few kilobytes that are meant to explode when they are decoded.

CVE-2026-22773: an image of one pixel ended vLLM's engine, for all callers. CVE-2026-22778: an error's text about an image told
where in memory vLLM's objects lie.
"""

import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Sequence

import grpc
import pytest
from PIL import Image, features

from tests.calls import INFER, PATIENCE_SECONDS, Failure, call
from tests.gated import make_gated
from tests.pictures import encode
from tests.wounds.conftest import MEBIBYTE, Victim
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.inputs.decoding_cost import decoding

SHORT, LONG = 3, 4
"""The types of a TIFF's numbers."""


def deflate(size: int) -> bytes:
    """Compress so many zeros."""
    packer, chunk = zlib.compressobj(9), bytes(MEBIBYTE)
    whole = [packer.compress(chunk) for _ in range(size // MEBIBYTE)]
    return b"".join([*whole, packer.compress(bytes(size % MEBIBYTE)), packer.flush()])


def png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a grey PNG, whatever its header says; further chunks come before its data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    pieces = (struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def directory(entries: Sequence[tuple[int, int, int, int]], data: bytes) -> bytes:
    """Write a TIFF's only directory, of (tag, type, count, value), and what lies behind it."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data


def grey_tiff(data: bytes, compression: int, *more: tuple[int, int, int, int]) -> bytes:
    """Write a grey TIFF of one pixel with these further entries; {} in their place of a value is where `data` begins."""
    entries = [(256, SHORT, 1, 1), (257, SHORT, 1, 1), (258, SHORT, 1, 8), (259, SHORT, 1, compression), (262, SHORT, 1, 1)]
    count = len(entries) + 1 + len(more)
    begin = 14 + 12 * count
    placed = [(tag, kind, size, begin if value < 0 else value) for tag, kind, size, value in more]
    return directory(sorted([*entries, (277, SHORT, 1, 1), *placed]), data)


def tile_of_134_million() -> bytes:
    """A TIFF of one pixel on a tile of 16,384 x 8,192."""
    packed = deflate(128 * MEBIBYTE)
    tile = ((322, LONG, 1, 16_384), (323, LONG, 1, 8_192), (324, LONG, 1, -1), (325, LONG, 1, len(packed)))
    return grey_tiff(packed, 8, *tile)


def strip_of_4_billion_rows() -> bytes:
    """A TIFF of one pixel whose strip has 2^32 - 1 rows."""
    packed = deflate(64 * MEBIBYTE)
    return grey_tiff(packed, 8, (273, LONG, 1, -1), (278, LONG, 1, 2**32 - 1), (279, LONG, 1, len(packed)))


def overlapping_values() -> bytes:
    """A TIFF whose 200 unknown tags have the same megabyte as their value."""
    tags = [(40_000 + number, 1, MEBIBYTE, 8) for number in range(200)]
    return grey_tiff(bytes(MEBIBYTE), 1, (273, LONG, 1, -1), (279, LONG, 1, 1), *tags)


def overlapping_metadata() -> bytes:
    """A PNG with the same in its EXIF."""
    exif = directory([(40_000 + number, 1, MEBIBYTE, 8) for number in range(200)], bytes(MEBIBYTE))
    return png(1, 1, deflate(2), (b"eXIf", exif))


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, which changes nothing, comes again and again."""
    whole = encode(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * count + whole[-2:]


def frame_beyond_the_screen() -> bytes:
    """A GIF of 1 x 1 whose frame has 60,000 x 60,000."""
    content = bytearray(encode(Image.new("L", (1, 1)), "GIF"))
    at = content.rindex(b",\0\0\0\0") + 5
    content[at : at + 4] = struct.pack("<HH", 60_000, 60_000)
    return bytes(content)


def many_frames(format: str) -> bytes:
    """An animation of 2,000 frames, of which the first is taken."""
    frames = [Image.new("L", (60, 60), number % 250) for number in range(2000)]
    return encode(frames[0], format, save_all=True, append_images=frames[1:])


Make = Callable[[], bytes]
REFUSED: dict[str, tuple[Make, str]] = {
    "a PNG of a pixel that says it has 4 billion": (lambda: png(2**16, 2**16, deflate(2)), "larger image"),
    "a PNG of the largest sizes": (lambda: png(2**31 - 1, 2**31 - 1, deflate(2)), "larger image"),
    "a PNG of ten million pixels": (lambda: png(10_000, 1000, deflate(MEBIBYTE)), "10000 x 1000"),
    "a PNG that deflates a gigapixel": (lambda: png(30_000, 30_000, deflate(MEBIBYTE)), "larger image"),
    "a TIFF of a pixel on a tile of 134 million": (tile_of_134_million, "tiles of 16384 x 8192"),
    "a GIF whose frame leaves its screen": (frame_beyond_the_screen, "image"),
    "a JPEG of a thousand scans": (lambda: scans(1000), "scans"),
    "a WebP of the largest sizes": (lambda: webp(2**24, 2**24), "image"),
    "a BMP of the largest sizes": (lambda: bmp(2**31 - 1, 2**31 - 1), "image"),
}
READ: dict[str, Make] = {
    "a PNG with more data than pixels": lambda: png(1, 1, deflate(64 * MEBIBYTE)),
    "a PNG with a text that inflates": lambda: png(1, 1, deflate(2), (b"zTXt", b"x\0\0" + deflate(64 * MEBIBYTE))),
    "a TIFF of a pixel in a strip of 4 billion rows": strip_of_4_billion_rows,
    "a TIFF whose values overlap": overlapping_values,
    "a PNG whose metadata overlap": overlapping_metadata,
    "a GIF of 2,000 frames": lambda: many_frames("GIF"),
}


def webp(width: int, height: int) -> bytes:
    """Write the head of an extended WebP, which says a size of its own."""
    small = encode(Image.new("RGB", (1, 1)), "WEBP")[12:]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + small
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int) -> bytes:
    """Write a BMP of a pixel that says another size."""
    content = bytearray(encode(Image.new("RGB", (1, 1)), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def ask(victim: Victim, image: bytes) -> bytes | Failure:
    """Send a picture."""
    return call(victim.channel, INFER, make_gated(more={"image": pb.Input(image=image)}).SerializeToString())


@pytest.mark.parametrize(("make", "found"), REFUSED.values(), ids=REFUSED)
def test_what_costs_more_than_its_pixels_is_refused_undecoded(victim: Victim, make: Make, found: str) -> None:
    image = make()
    with victim.growing_at_most(32):
        failure = ask(victim, image)
        assert isinstance(failure, Failure)
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert found in failure.details


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_what_need_not_be_looked_at_costs_nothing(victim: Victim, make: Make) -> None:
    image = make()
    with victim.growing_at_most(32):
        assert isinstance(ask(victim, image), bytes)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_an_avif_which_may_be_larger_than_it_says_is_decoded_alone() -> None:
    """Its decoder has no other limit than 2^28 pixels: so that this is taken once, and not by every thread."""
    content = encode(Image.new("RGB", (2, 2)), "AVIF")
    image = Image.open(io.BytesIO(content))

    def decode() -> None:
        with decoding(image, content, 4):
            image.load()

    other = threading.Thread(target=decode)
    with decoding(image, content, 4):
        other.start()
        other.join(0.1)
        assert other.is_alive()
    other.join(PATIENCE_SECONDS)
    assert not other.is_alive()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_no_error_of_a_damaged_picture_tells_where_anything_lies(victim: Victim, format: str) -> None:
    """CVE-2026-22778."""
    whole = encode(Image.effect_noise((40, 40), 50), format)
    damaged = [whole[:size] for size in range(1, len(whole), max(1, len(whole) // 20))]
    damaged += [whole[:at] + b"\xff\xff\xff" + whole[at + 3 :] for at in range(0, min(len(whole), 120), 6)]
    failures = [found for image in damaged if isinstance(found := ask(victim, image), Failure)]
    assert failures
    for failure in failures:
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert not re.search(r"0x[0-9a-f]{4}|<_io|object at|File \"|/\w+/", failure.details), failure.details

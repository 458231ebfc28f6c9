"""Samples of more or fewer than 8 bits keep to what their file says: which end is white, and what is transparent."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.pictures import encode, make_kind, see
from twinfer_server.errors import InvalidInput
from twinfer_server.types import Array

SHAPE = (6, 8)
WIDE = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.uint32)
BRIGHT = np.rint(WIDE / 65535 * 255).astype(np.uint8)


def write_png(rows: Array, bits: int, color: int, key: bytes = b"") -> bytes:
    """Write uint8 [height, bytes of a row] as a PNG of that depth and type of colour, its transparent colour being `key`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", SHAPE[1], SHAPE[0], bits, color, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    transparent = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_tiff(pixels: bytes, bits: int, *, order: str = "<", photometric: int = 1, tags: dict[int, int] | None = None) -> bytes:
    """Write one grey strip of `pixels` as an uncompressed TIFF of that byte order."""
    entries = {256: SHAPE[1], 257: SHAPE[0], 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: SHAPE[0], 279: len(pixels)}
    entries = dict(sorted((entries | (tags or {})).items()))
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries.items():
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value) if order == "<" else struct.pack(">HHIHH", tag, 3, 1, value, 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + directory + bytes(4)


def see_grey(content: bytes) -> Array:
    return see(make_kind(size=SHAPE, color="gray"), content)[:, :, 0]


def test_16_bit_grey_is_rounded() -> None:
    assert np.array_equal(see_grey(write_png(WIDE.astype(">u2").view(np.uint8), 16, 0)), BRIGHT)
    for order in "<>":
        assert np.array_equal(see_grey(write_tiff(WIDE.astype(f"{order}u2").tobytes(), 16, order=order)), BRIGHT)


def test_a_transparent_grey_of_16_bits_is_compared_at_16_bits() -> None:
    wide = WIDE.copy()
    wide[0, :3] = 1000, 1001, 1000
    seen = see_grey(write_png(wide.astype(">u2").view(np.uint8), 16, 0, key=struct.pack(">H", 1000)))
    assert seen[0, :3].tolist() == [255, 4, 255]
    assert np.array_equal(seen[1:], BRIGHT[1:])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_is_compared_at_these(bits: int) -> None:
    highest = 2**bits - 1
    samples = (np.arange(48) % (highest + 1)).astype(np.uint8).reshape(SHAPE)
    each = np.unpackbits(samples[:, :, np.newaxis], axis=2)[:, :, 8 - bits :].reshape(SHAPE[0], -1)
    seen = see_grey(write_png(np.packbits(each, axis=1), bits, 0, key=b"\0\1"))
    expected = np.where(samples == 1, 255, samples.astype(int) * 255 // highest)
    assert np.array_equal(seen, expected)


def test_colour_of_16_bits_is_seen_by_its_upper_8_and_a_transparent_one_is_refused() -> None:
    colour = np.random.default_rng(1).integers(0, 65536, (*SHAPE, 3)).astype(">u2")
    rows = colour.reshape(SHAPE[0], -1).view(np.uint8)
    assert np.array_equal(see(make_kind(size=SHAPE), write_png(rows, 16, 2)), (colour >> 8).astype(np.uint8))
    content = write_png(rows, 16, 2, key=colour[0, 0].tobytes())
    with pytest.raises(
        InvalidInput, match="found a PNG of 16-bit colour of which one is transparent; allowed: 8 or 16 bits per channel"
    ):
        see(make_kind(size=SHAPE), content)


def test_a_transparent_colour_of_8_bits_is_laid_on_white() -> None:
    colour = np.random.default_rng(2).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    key = b"".join(struct.pack(">H", value) for value in colour[2, 3])
    seen = see(make_kind(size=SHAPE), write_png(colour.reshape(SHAPE[0], -1), 8, 2, key=key))
    colour[2, 3] = 255
    assert np.array_equal(seen, colour)


@pytest.mark.parametrize(("color", "channels"), [(4, 2), (6, 4)], ids=["grey", "colour"])
def test_an_alpha_channel_of_16_bits_is_laid_on_white(color: int, channels: int) -> None:
    samples = np.random.default_rng(3).integers(0, 65536, (*SHAPE, channels)).astype(">u2")
    seen = see(make_kind(size=SHAPE), write_png(samples.reshape(SHAPE[0], -1).view(np.uint8), 16, color))
    upper = (samples >> 8).astype(np.float64)
    alpha = upper[:, :, -1:] / 255
    expected = upper[:, :, :-1] * alpha + 255 * (1 - alpha)
    assert np.abs(seen.astype(float) - expected).max() <= 1


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_where_a_tiffs_0_is_white_it_is_seen_white(bits: int) -> None:
    samples = WIDE >> (16 - bits)
    if bits == 16:
        pixels = samples.astype("<u2").tobytes()
    else:
        each = np.unpackbits(samples.astype(np.uint8)[:, :, np.newaxis], axis=2)[:, :, 8 - bits :].reshape(SHAPE[0], -1)
        pixels = np.packbits(each, axis=1).tobytes()
    expected = np.rint((2**bits - 1 - samples) / (2**bits - 1) * 255)
    assert np.array_equal(see_grey(write_tiff(pixels, bits, photometric=0)), expected)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_so_it_is_in_a_compressed_one(compression: str | None) -> None:
    file = io.BytesIO()
    Image.fromarray(WIDE.astype(np.uint16)).save(file, "TIFF", compression=compression, tiffinfo={262: 0})
    assert np.array_equal(see_grey(file.getvalue()), 255 - BRIGHT)


def test_12_bit_grey_is_scaled_from_its_12_bits() -> None:
    samples = WIDE >> 4
    pairs = samples.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1).astype(np.uint8)
    assert np.array_equal(see_grey(write_tiff(packed.tobytes(), 12)), np.rint(samples / 4095 * 255))


@pytest.mark.parametrize(("bits", "format"), [(8, 2), (16, 2), (32, 1), (32, 2), (32, 3)], ids=str)
def test_samples_with_a_sign_or_of_32_bits_are_refused(bits: int, format: int) -> None:
    content = write_tiff(bytes(48 * bits // 8), bits, tags={339: format})
    with pytest.raises(
        InvalidInput, match=r"found (a TIFF of samples with a sign|32-bit pixels \(mode [IF]\)); allowed: 8 or 16 bits"
    ):
        see_grey(content)


def test_planes_of_more_than_8_bits_are_refused() -> None:
    content = write_tiff(bytes(96), 16, tags={284: 2})
    with pytest.raises(InvalidInput, match="found a TIFF whose channels, of 16 bits, lie on planes; allowed: "):
        see_grey(content)


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_byte_order_that_pillow_cannot_turn_is_seen_right_or_refused(photometric: int) -> None:
    content = write_tiff(WIDE.astype(">u2").tobytes(), 16, order=">", photometric=photometric)
    if photometric == 1:
        assert np.array_equal(see_grey(content), BRIGHT)
        return
    with pytest.raises(InvalidInput, match=r"begin as TIFF and cannot be read.*unknown pixel mode"):
        see_grey(content)


def test_of_a_tiff_of_pages_the_first_is_seen() -> None:
    first, second = (Image.fromarray(np.full(SHAPE, value, np.uint8)) for value in (40, 200))
    assert np.unique(see_grey(encode(first, "TIFF", save_all=True, append_images=[second] * 50))).tolist() == [40]


def test_a_turned_picture_of_16_bits_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    content = encode(Image.fromarray(WIDE.astype(np.uint16)), "PNG", exif=exif)
    assert np.array_equal(see_grey(content), BRIGHT[::-1, ::-1])


def test_adobes_inverted_cmyk_is_turned_right() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 51, 204, 25))
    content = encode(ink, "JPEG", quality=95)
    assert b"Adobe" in content
    expected = [round((255 - value) * (255 - 25) / 255) for value in (0, 51, 204)]
    seen = see(make_kind(size=[16, 16]), content)
    assert np.abs(seen.astype(int) - expected).max() <= 4

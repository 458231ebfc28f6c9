"""Image inputs: every kind of picture becomes the pixels that a person would see; everything else is refused."""

import functools
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from tests.pictures import encode, make_kind, see
from twinfer_server.errors import InvalidInput
from twinfer_server.inputs import BufferSpec, InputLimits
from twinfer_server.types import RawInput

ORANGE = (200, 100, 48)
GRAY = 124  # of ORANGE, by ITU-R 601: 0.299 r + 0.587 g + 0.114 b

make = functools.partial(make_kind, size=[6, 8])


def orange(mode: str) -> Image.Image:
    return Image.new("RGB", (8, 6), ORANGE).convert(mode)


def wide(dtype: str, value: float) -> Image.Image:
    return Image.fromarray(np.full((6, 8), value, dtype=dtype))


def write_png(width: int, height: int) -> bytes:
    """Write a PNG whose header promises more pixels than its few bytes hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURES = {
    "JPEG in colour": (encode(orange("RGB"), "JPEG"), ORANGE),
    "JPEG in grey": (encode(orange("L"), "JPEG"), (GRAY,) * 3),
    "JPEG in CMYK": (encode(orange("CMYK"), "JPEG"), ORANGE),
    "PNG in colour": (encode(orange("RGB"), "PNG"), ORANGE),
    "PNG in grey": (encode(orange("L"), "PNG"), (GRAY,) * 3),
    "PNG of one bit": (encode(Image.new("1", (8, 6), 1), "PNG"), (255,) * 3),
    "PNG with a palette": (encode(orange("RGB").quantize(4), "PNG"), ORANGE),
    "PNG of 16 bits": (encode(wide("uint16", 257 * GRAY + 100), "PNG"), (GRAY,) * 3),
    "PNG of 16 bits, rounded up": (encode(wide("uint16", 257 * GRAY + 200), "PNG"), (GRAY + 1,) * 3),
    "PNG of 16 bits, white": (encode(wide("uint16", 65535), "PNG"), (255,) * 3),
    "PNG with alpha, opaque": (encode(orange("RGBA"), "PNG"), ORANGE),
    "PNG with alpha, transparent": (encode(Image.new("RGBA", (8, 6), (*ORANGE, 0)), "PNG"), (255,) * 3),
    "PNG with alpha, half transparent": (encode(Image.new("RGBA", (8, 6), (0, 0, 0, 51)), "PNG"), (204,) * 3),
    "PNG in grey with alpha, transparent": (encode(Image.new("LA", (8, 6), (0, 0)), "PNG"), (255,) * 3),
    "PNG with a transparent colour": (encode(orange("RGB"), "PNG", transparency=ORANGE), (255,) * 3),
    "PNG with a transparent palette entry": (encode(orange("RGB").quantize(4), "PNG", transparency=0), (255,) * 3),
    "WebP in colour": (encode(orange("RGB"), "WEBP"), ORANGE),
    "WebP without loss": (encode(orange("RGB"), "WEBP", lossless=True), ORANGE),
    "WebP with alpha, transparent": (encode(Image.new("RGBA", (8, 6), (0, 0, 0, 0)), "WEBP"), (255,) * 3),
    "GIF": (encode(orange("RGB").quantize(4), "GIF"), ORANGE),
    "GIF of two frames": (encode(orange("RGB"), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 6))]), ORANGE),
    "BMP": (encode(orange("RGB"), "BMP"), ORANGE),
    "TIFF in colour": (encode(orange("RGB"), "TIFF"), ORANGE),
    "TIFF, compressed": (encode(orange("RGB"), "TIFF", compression="tiff_lzw"), ORANGE),
    "TIFF in CMYK": (encode(orange("CMYK"), "TIFF"), ORANGE),
    "TIFF in YCbCr": (encode(orange("YCbCr"), "TIFF"), ORANGE),
    "TIFF of 16 bits": (encode(wide("<u2", 257 * GRAY), "TIFF"), (GRAY,) * 3),
    "TIFF of 16 bits, big-endian": (encode(wide(">u2", 257 * GRAY), "TIFF"), (GRAY,) * 3),
}


@pytest.mark.parametrize(("content", "color"), PICTURES.values(), ids=PICTURES)
def test_it_sees_what_a_person_would(content: bytes, color: tuple[int, ...]) -> None:
    rgb = see(make(), content)
    assert rgb.shape == (6, 8, 3)
    assert np.abs(rgb.astype(int) - color).max() <= 2
    gray = see(make(color="gray"), content)
    luma = round(float(np.dot(color, (0.299, 0.587, 0.114))))
    assert gray.shape == (6, 8, 1)
    assert np.abs(gray.astype(int) - luma).max() <= 2


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_an_agreed_range_are_refused(mode: str) -> None:
    with pytest.raises(InvalidInput, match=rf"inputs\['image'\]: found 32-bit pixels \(mode {mode}\); allowed: 8 or 16"):
        make().decode(encode(orange("L").convert(mode), "TIFF"))


CAMERA_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]
"""What the camera did to the upright picture, for the EXIF orientations from 2; of 6 and 8 the reader undoes the other turn."""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_taken_with_a_turned_camera_is_turned_upright(format: str, orientation: int) -> None:
    upright = Image.new("L", (16, 8), "black")
    upright.paste(255, (0, 0, 8, 4))  # white in the upper left quarter alone
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose[CAMERA_TURNS[orientation - 2]])
    content = encode(turned, format, exif=exif)
    seen = see(make(size=[8, 16], color="gray"), content)[:, :, 0]
    assert np.abs(seen.astype(int) - np.asarray(upright)).max() <= 8


def test_damaged_exif_does_not_cost_the_picture() -> None:
    content = encode(orange("RGB"), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert see(make(), content).tolist() == [[[*ORANGE]] * 8] * 6


def test_a_picture_of_the_right_size_and_color_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(see(make(), encode(Image.fromarray(pixels), "PNG")), pixels)
    assert np.array_equal(see(make(), pixels), pixels)
    strided = np.frombuffer(bytes(range(240)), np.uint8).reshape(10, 8, 3)[::2]  # and read-only
    assert np.array_equal(see(make(size=[5, 8]), strided), strided)


@pytest.mark.parametrize("resize", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", [(40, 30), (3, 5), (1, 1), (8, 30)], ids=str)
def test_another_size_is_resized_as_pillow_does(resize: str, color: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    reference = Image.fromarray(pixels).convert("L" if color == "gray" else "RGB")
    reference = reference.resize((8, 6), Image.Resampling[resize.upper()])
    seen = see(make(color=color, resize=resize), encode(Image.fromarray(pixels), "PNG"))
    error = np.abs(seen.astype(int) - np.asarray(reference).reshape(6, 8, -1))
    assert error.max() <= (1 if (resize, color) == ("bilinear", "rgb") else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_ready_pixels_stand_in_for_a_picture(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    for color in ("rgb", "gray"):
        assert np.array_equal(see(make(color=color), pixels), see(make(color=color), encode(picture, "PNG")))


def test_one_decoded_picture_serves_members_of_other_sizes_and_colors() -> None:
    large, small = make(size=[20, 20]), make(color="gray", size=[2, 2])
    content = encode(orange("RGB"), "PNG")
    decoded = large.decode(content)
    for _ in range(2):
        assert np.array_equal(small.prepare(decoded)[0][0], see(small, content))
        assert np.array_equal(large.prepare(decoded)[0][0], see(large, content))


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("is_normalised", [True, False], ids=["normalised", "only scaled"])
def test_the_member_gets_float32_planes_scaled_and_normalised(color: str, is_normalised: bool) -> None:
    channels = 3 if color == "rgb" else 1
    mean, std = [0.5, 0.25, 0.125][:channels], [0.5, 2.0, 1.0][:channels]
    kind = make(color=color, mean=mean if is_normalised else [], std=std if is_normalised else [])
    staged = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 6, 8, channels), dtype=np.uint8))
    before = staged.clone()
    [argument] = kind.arguments([staged])
    expected = before.numpy().astype(np.float32) / 255
    if is_normalised:
        expected = (expected - np.array(mean, np.float32)) / np.array(std, np.float32)
    assert (argument.dtype, argument.shape, argument.is_contiguous()) == (torch.float32, (4, channels, 6, 8), True)
    np.testing.assert_allclose(argument.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-6, atol=1e-7)
    assert torch.equal(staged, before), "the buffer belongs to the batch"


def test_it_tells_the_batch_and_the_callers_what_it_takes() -> None:
    kind = make(color="gray")
    assert kind.buffers == (BufferSpec("pixels", torch.uint8, (6, 8, 1)),)
    assert (kind.tensor_dtype, kind.tensor_shape) == ("uint8", (-1, -1, 1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("a cat", "found the text 'a cat'; allowed: an image as JPEG, PNG", id="text"),
        pytest.param(b"", "found no bytes; allowed: an image as JPEG, PNG", id="no bytes"),
        pytest.param(b"a cat", "found 5 bytes that are no image", id="bytes of a text"),
        pytest.param(b"%PDF-1.7\n", "found 9 bytes that are no image", id="document"),
        pytest.param(encode(orange("RGB"), "PPM"), "that are no image", id="format outside the list"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "that are no image", id="program"),
        pytest.param(np.zeros((6, 8), np.uint8), "found a tensor uint8 [6, 8]; allowed", id="pixels of rank 2"),
        pytest.param(np.zeros((6, 8, 4), np.uint8), "found a tensor uint8 [6, 8, 4]", id="four channels"),
        pytest.param(np.zeros((6, 8, 3), np.float32), "found a tensor float32 [6, 8, 3]", id="float pixels"),
        pytest.param(np.zeros((0, 8, 3), np.uint8), "found a tensor uint8 [0, 8, 3]", id="no pixels"),
    ],
)
def test_what_is_no_picture_is_refused(value: RawInput, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)) as refusal:
        make().decode(value)
    assert str(refusal.value).startswith("inputs['image']: found ")
    assert "; allowed: " in str(refusal.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9])
def test_a_truncated_picture_is_refused(format: str, part: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), format)
    message = r"inputs\['image'\]: found .*(truncated or damaged|only its beginning)"
    with pytest.raises(InvalidInput, match=message):
        make().decode(content[: int(part * len(content))])


BOMBS = {
    "above our limit, below Pillow's": write_png(8_000, 8_000),
    "above Pillow's warning": write_png(10_000, 10_000),
    "above Pillow's error": write_png(60_000, 60_000),
    "WebP": encode(Image.new("L", (16_000, 16_000)), "WEBP", lossless=True, method=0),
    "GIF whose frame is larger than its screen": (b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;"),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(content: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"inputs\['image'\]: found .*; allowed: at most 50000000 pixels"):
        make().decode(content)


def test_the_pixel_limit_holds_for_ready_pixels_too_and_is_exact() -> None:
    kind = make(InputLimits(max_image_pixels=48))
    assert see(kind, np.zeros((6, 8, 3), np.uint8)).shape == (6, 8, 3)
    assert see(kind, encode(orange("RGB"), "PNG")).shape == (6, 8, 3)
    for value in (np.zeros((7, 7, 3), np.uint8), encode(Image.new("L", (7, 7)), "PNG")):
        with pytest.raises(InvalidInput, match="found an image of 7 x 7 pixels; allowed: at most 48 pixels"):
            kind.decode(value)


def test_a_higher_limit_is_not_held_back_by_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert see(make(InputLimits(max_image_pixels=5_000)), encode(Image.new("L", (70, 70)), "PNG")).shape == (6, 8, 3)


@given(
    content=st.sampled_from([content for content, _ in PICTURES.values()]) | st.binary(min_size=1, max_size=300),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    end=st.integers(0, 10_000),
)
def test_a_damaged_picture_and_any_bytes_are_seen_or_refused(content: bytes, changes: list[tuple[int, int]], end: int) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    kind = make(InputLimits(max_image_pixels=100_000))
    try:
        seen = see(kind, bytes(damaged[: 1 + end % len(damaged)]))
    except InvalidInput:
        return
    assert seen.shape == (6, 8, 3)

"""JPEGs are decoded at a part of their size where that is enough, and seen as Pillow would see them in full."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_sample_image

from tests.pictures import encode, make_kind, see
from twinfer_server.inputs.picture import Picture
from twinfer_server.types import Array


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A photograph of 640 x 427 pixels, which is no multiple of anything."""
    return Image.fromarray(load_sample_image("flower.jpg"))


def error(seen: Array, reference: Image.Image) -> Array:
    difference: Array = np.abs(seen.astype(int) - np.asarray(reference).reshape(seen.shape))
    return difference


@given(width=st.integers(1, 40), height=st.integers(1, 40), subsampling=st.sampled_from([0, 1, 2]), seed=st.integers(0, 9))
def test_a_small_jpeg_of_any_size_has_pillows_pixels(width: int, height: int, subsampling: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), "JPEG", subsampling=subsampling)
    kind = make_kind(size=(height, width))
    assert not error(see(kind, content, kind.min_size), Image.open(io.BytesIO(content))).any()


@pytest.mark.parametrize(
    ("size", "scale"),
    [((113, 113), 1), ((28, 169), 1), ((112, 112), 2), ((56, 56), 2), ((55, 55), 4), ((28, 28), 4), ((27, 27), 8), ((1, 1), 8)],
)
def test_it_is_decoded_at_the_smallest_size_that_leaves_enough(photograph: Image.Image, size: tuple[int, int], scale: int) -> None:
    kind = make_kind(size=size)
    decoded: Picture = kind.decode(encode(photograph, "JPEG"), kind.min_size)
    assert (decoded.scale, decoded.height, decoded.width) == (scale, 427, 640)
    assert decoded.pixels.shape == (-(-427 // scale), -(-640 // scale), 3)


@pytest.mark.parametrize(
    "keys", [{"scaled_decoding": False}, {"resize": "nearest"}, {"resize": "box"}, {"fit": "crop", "resize_to": 300}], ids=str
)
def test_it_is_decoded_in_full_where_that_is_asked_for_or_needed(photograph: Image.Image, keys: dict[str, Any]) -> None:
    kind = make_kind(size=(20, 20), **keys)
    assert kind.decode(encode(photograph, "JPEG"), kind.min_size).scale == 1


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_jpegs_of_every_sort_are_scaled_too(photograph: Image.Image, options: Any, mode: str, color: str) -> None:
    content = encode(photograph.convert(mode), "JPEG", **options)
    kind = make_kind(size=(106, 160), color=color)
    assert kind.decode(content, kind.min_size).scale == 2
    reference = Image.open(io.BytesIO(content)).convert("RGB").convert("L" if color == "gray" else "RGB")
    assert error(see(kind, content, kind.min_size), reference.resize((160, 106), Image.Resampling.BILINEAR)).mean() <= 1.0


@pytest.mark.parametrize("resize", ["bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
@pytest.mark.parametrize(("size", "scale"), [((106, 160), 2), ((53, 80), 4), ((26, 40), 8)])
def test_scaled_it_is_within_1_on_average_of_the_one_in_full(name: str, size: tuple[int, int], scale: int, resize: str) -> None:
    content = encode(Image.fromarray(load_sample_image(name)), "JPEG", quality=90)
    size = size if resize != "hamming" else (size[0] * 4 // 5, size[1] * 4 // 5)
    kind = make_kind(size=size, resize=resize)
    assert kind.decode(content, kind.min_size).scale == scale
    reference = Image.open(io.BytesIO(content)).resize((size[1], size[0]), Image.Resampling[resize.upper()])
    difference = error(see(kind, content, kind.min_size), reference)
    assert difference.mean() <= 1.0
    assert difference.max() <= 24


@pytest.mark.parametrize("crop", [(0, 0, 640, 427), (0, 0, 632, 424)], ids=["of an odd size", "of whole blocks"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_and_turned_it_is_upright_and_in_its_place(photograph: Image.Image, orientation: int, crop: Any) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode(photograph.crop(crop), "JPEG", exif=exif, quality=90)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    kind = make_kind(size=(52, 52))
    decoded: Picture = kind.decode(content, kind.min_size)
    assert (decoded.width, decoded.height) == upright.size
    assert decoded.scale == (4 if orientation == 1 or crop[2] == 632 else 1)
    assert error(see(kind, content, kind.min_size), upright.resize((52, 52), Image.Resampling.BILINEAR)).mean() <= 1.0

"""Fits: pictures become the member's size as the usual training pipelines do it, written here with Pillow alone."""

import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tests.pictures import make_kind, see
from twinfer_server.errors import InvalidInput
from twinfer_server.inputs import InputLimits
from twinfer_server.spec import MemberSpec
from twinfer_server.types import Array

SIZES = [(40, 30), (30, 40), (41, 28), (33, 77), (24, 24), (7, 9), (1, 50), (300, 23)]

make = functools.partial(make_kind, size=[24, 24])


def noise(height: int, width: int, channels: int = 3) -> Array:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def resize_edge(image: Image.Image, edge: int, how: Image.Resampling) -> Image.Image:
    """torchvision.transforms.Resize(edge) on a Pillow image."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(edge * long / short)
    return image.resize((edge, new_long) if width <= height else (new_long, edge), how)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """torchvision.transforms.CenterCrop((height, width)) on a Pillow image."""
    if image.width < width or image.height < height:
        wide = Image.new("RGB", (max(width, image.width), max(height, image.height)))
        wide.paste(image, (max(0, width - image.width) // 2, max(0, height - image.height) // 2))
        image = wide
    top, left = int(round((image.height - height) / 2.0)), int(round((image.width - width) / 2.0))  # noqa: RUF046
    return image.crop((left, top, left + width, top + height))


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("crop", [(24, 24), (20, 17), (31, 18)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_middle_is_cut_out_as_torchvision_does(size: tuple[int, int], crop: tuple[int, int], how: str) -> None:
    pixels = noise(*size)
    reference = resize_edge(Image.fromarray(pixels), 27, Image.Resampling[how.upper()])
    seen = see(make(size=list(crop), fit="crop", resize_to=27, resize=how), pixels)
    error = np.abs(seen.astype(int) - np.asarray(center_crop(reference, *crop)))
    assert error.max() <= (1 if how == "bilinear" else 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_middle_is_cut_out_of_a_stretched_picture_too(size: tuple[int, int]) -> None:
    reference = Image.fromarray(noise(*size)).resize((31, 29), Image.Resampling.LANCZOS)
    seen = see(make(fit="crop", resize_to=[29, 31], resize="lanczos"), noise(*size))
    assert np.array_equal(seen, np.asarray(center_crop(reference, 24, 24)))


@pytest.mark.parametrize("size", [(24, 24), (24, 16)], ids=str)
def test_left_to_itself_a_crop_takes_the_largest_middle_that_a_square_has(size: tuple[int, int]) -> None:
    reference = resize_edge(Image.fromarray(noise(48, 96)), 24, Image.Resampling.BOX)
    seen = see(make(size=list(size), fit="crop", resize="box"), noise(48, 96))
    assert np.array_equal(seen, np.asarray(center_crop(reference, *size)))


@pytest.mark.parametrize("has", range(24, 34))
def test_hugging_faces_crops_begin_at_the_first_of_two_pixels(has: int) -> None:
    pixels = noise(has, has)
    first = int((has - 24) / 2.0)
    seen = see(make(fit="crop", resize_to=[has, has], crop_offset="floor"), pixels)
    assert np.array_equal(seen, pixels[first : first + 24, first : first + 24])


@pytest.mark.parametrize("place", ["middle", "corner"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_letterbox_shows_the_whole_picture_between_bars(size: tuple[int, int], place: str) -> None:
    pixels = noise(*size)
    seen = see(make(size=[24, 32], fit="pad", pad_color=114, pad_place=place, resize="bicubic"), pixels)
    ratio = min(24 / size[0], 32 / size[1])
    height, width = max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
    # As LetterBox of Ultralytics rounds.
    top, left = (round((24 - height) / 2 - 0.1), round((32 - width) / 2 - 0.1)) if place == "middle" else (0, 0)
    reference = Image.new("RGB", (32, 24), (114, 114, 114))
    reference.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), (left, top))
    assert np.array_equal(seen, np.asarray(reference))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_grey_member_sees_grey_bars_and_grey_pixels(fit: str) -> None:
    kind = make(fit=fit, color="gray", resize="bicubic")
    grey = np.asarray(Image.fromarray(noise(20, 60)).convert("L"))[:, :, np.newaxis]
    seen = see(kind, noise(20, 60))
    assert seen.shape == (24, 24, 1)
    assert np.array_equal(seen, see(kind, grey))


@given(
    height=st.integers(1, 80), width=st.integers(1, 80), channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["stretch", "crop", "pad"]), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)  # fmt: skip
def test_every_picture_becomes_the_members_size(height: int, width: int, channels: int, fit: str, size: tuple[int, int]) -> None:
    kind = make(size=list(size), fit=fit, color="gray" if channels == 1 else "rgb")
    flat = np.full((height, width, channels), 200, dtype=np.uint8)
    seen = see(kind, flat)
    assert seen.shape == (*size, channels)
    # What is one colour stays that colour; bars are black.
    assert set(np.unique(seen)) <= ({200} if fit == "stretch" else {0, 200})
    assert 200 in seen


def test_a_sliver_that_grows_beyond_all_measure_is_refused() -> None:
    kind = make(InputLimits(max_image_pixels=1_000_000), fit="crop", resize_to=64)
    assert see(kind, noise(10, 1000)).shape == (24, 24, 3)
    message = "inputs['image']: found an image of 50000 x 1 pixels, 3200000 x 64 when resized; allowed: at most 1000000 pixels"
    with pytest.raises(InvalidInput, match=re.escape(message)):
        see(kind, noise(1, 50_000))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"resize_to": 256}, "resize_to: found it beside fit 'stretch'; allowed: with fit 'crop'"),
        ({"fit": "pad", "crop_offset": "floor"}, "crop_offset: found it beside fit 'pad'; allowed: with fit 'crop'"),
        ({"fit": "crop", "pad_color": 114}, "pad_color: found it beside fit 'crop'; allowed: with fit 'pad'"),
        ({"pad_place": "corner"}, "pad_place: found it beside fit 'stretch'; allowed: with fit 'pad'"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.split(";")[0],
)
def test_a_key_of_another_fit_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        make(None, **keys)


@pytest.mark.parametrize(("factor", "mean", "std"), [(1 / 127.5, 1.0, 1.0), (1.0, 103.53, 57.4), (1 / 255, 0.485, 0.229)])
def test_another_rescale_factor_is_told_by_mean_and_std(factor: float, mean: float, std: float) -> None:
    scale = 255 * factor
    kind = make(mean=[mean / scale] * 3, std=[std / scale] * 3)
    pixels = noise(24, 24)
    [argument] = kind.arguments([torch.from_numpy(pixels[np.newaxis])])
    expected = (pixels.astype(np.float64) * factor - mean) / std
    np.testing.assert_allclose(argument[0].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_detector_sees_the_picture_stretched(fit: str) -> None:
    image = {"kind": "image", "size": [8, 8], "fit": fit}
    member = {"model": "python:models:make", "input": {"image": image}, "output": {"kind": "detections"}}
    with pytest.raises(ValidationError, match=f"input.image.fit: found '{fit}' for output.kind 'detections'; allowed: 'stretch'"):
        MemberSpec.model_validate(member)
    assert MemberSpec.model_validate({**member, "output": {"kind": "logits"}}).input["image"].kind == "image"

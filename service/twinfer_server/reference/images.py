"""Made-up pictures through a directory's own image processor and through ours: what differs is not served."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..errors import InvalidEnsemble, quote
from ..inputs.image import ImageInput
from ..spec import read_config
from ..spec.image_processor import load_image_processor, name_processor, read_image
from ..types import Array

TOLERANCE = 1e-5
"""Of a picture's largest value: what the order of float32 operations makes of the same pixels."""


@dataclass(frozen=True, slots=True)
class MadePicture:
    """A picture as a file, and as the library is given it."""

    name: str
    content: bytes
    shown: Image.Image


def compare_images(key: str, input: ImageInput, directory: Path) -> str:
    """Compare made-up pictures, and return one line of what was compared or why nothing was; raises InvalidEnsemble.

    `key` is the input's path in the ensemble's file. The pixels have to be the same, and the numbers but for rounding; where
    torch shrinks colour bilinearly, with coarser weights, a pixel may be off by one of 255 steps, and a rare one by two.
    """
    try:
        said = read_image({}, directory, read_config(directory))
        processor = load_image_processor(directory)
    except ValueError as error:
        return f"{key}: not compared: {error}"
    own = [name for name, value in said.items() if name != "scaled_decoding" and getattr(input.spec, name) != value]
    if own:
        return f"{key}: not compared: the ensemble's file has {', '.join(own)} of its own"
    largest, compared, left_out = 0.0, 0, []
    for picture in _make_pictures(input, converts=bool(processor.do_convert_rgb)):
        try:
            expected = np.asarray(processor(images=picture.shown, return_tensors="np")["pixel_values"][0], dtype=np.float32)
        except Exception as error:  # of the library's, for a picture that it cannot take
            left_out.append(f"{picture.name} ({type(processor).__name__}: {quote(error)})")
            continue
        found = _see(input, picture.content)
        largest = max(largest, _compare(f"{key}: {picture.name}", found, expected, input, name_processor(processor)))
        compared += 1
    if not compared:
        raise InvalidEnsemble(
            f"{key}: found an image processor that takes none of the pictures: {', '.join(left_out)}; allowed: one that does"
        )
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"{key}: {compared} pictures, largest difference {largest:.1g}{without}"


def _make_pictures(input: ImageInput, *, converts: bool) -> Iterator[MadePicture]:
    """Make pictures of soft colours, in sizes about the member's; where the library `converts` it gets what is not RGB as it is."""
    height, width = input.spec.size
    mode = "L" if input.spec.channels == 1 else "RGB"
    for seed, (name, its_mode, its_width, its_height, orientation) in enumerate(
        [
            ("an upright picture", "RGB", 45, 61, 1),
            ("a wide picture", "RGB", 119, 43, 1),
            ("a large picture of odd size", "RGB", width * 13 // 10 | 1, height * 17 // 10 | 1, 1),
            ("a picture of the member's size", "RGB", width, height, 1),
            ("a picture of one pixel", "RGB", 1, 1, 1),
            ("a grey picture", "L", 70, 51, 1),
            ("a picture that is turned by its EXIF", "RGB", 70, 40, 6),
            ("a transparent picture", "RGBA", 50, 64, 1),
        ]
    ):
        if its_mode == "RGBA" and not converts:
            continue  # of which the library would make four channels
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 4), dtype=np.uint8)
        made = Image.fromarray(coarse).resize((its_width, its_height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        file = io.BytesIO()
        (made if its_mode == "RGBA" else made.convert("RGB").convert(its_mode)).save(file, "PNG", exif=exif, compress_level=1)
        shown = ImageOps.exif_transpose(Image.open(file))
        yield MadePicture(name, file.getvalue(), shown if converts else shown.convert(mode))


def _see(input: ImageInput, content: bytes) -> Array:
    """Return what the member is called with for one picture, float32 [channels, height, width]."""
    [pixels] = input.prepare(input.decode(content, input.min_size))
    [argument] = input.arguments([torch.from_numpy(np.array(pixels)).to(input.device)])
    return np.asarray(argument[0].cpu())


def _compare(where: str, found: Array, expected: Array, input: ImageInput, processor: str) -> float:
    """Return the largest difference; raises InvalidEnsemble where one is beyond rounding."""
    if found.shape != expected.shape:
        shapes = f"found {list(found.shape)} as the member's [channels, height, width]; allowed: {list(expected.shape)}"
        raise InvalidEnsemble(f"{where}: {shapes}, as {processor} has it")
    allowed: Any = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if input.spec.resize == "bilinear" and input.spec.channels == 3:
        allowed = allowed + 2.001 / 255 / np.array(input.spec.std or [1.0] * 3).reshape(-1, 1, 1)
    difference: Array = np.abs(np.subtract(found, expected))
    beyond = difference - allowed
    if not (beyond <= 0).all():  # nor where one is NaN
        channel, row, column = np.unravel_index(np.nanargmax(beyond), beyond.shape)
        place = f"channel {channel}, row {row}, column {column} of {found.shape[1]} x {found.shape[2]}"
        ours, its = found[channel, row, column], expected[channel, row, column]
        raise InvalidEnsemble(f"{where}: found {ours:.6g} in {place}; allowed: {its:.6g}, as {processor} has it")
    return float(difference.max())

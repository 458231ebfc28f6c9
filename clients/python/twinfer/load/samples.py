"""Rows of random data, as an ensemble describes its inputs: for load where nobody has data at hand."""

import io
from typing import TYPE_CHECKING

from twinfer.inputs import DTYPES, Value
from twinfer.v1 import ensemble_pb2

if TYPE_CHECKING:
    import numpy

WORDS = ("one", "two", "three", "four", "five", "and", "or", "not", "the", "a", "small", "red", "new", "day", "sun", "rain")
COMPARED = 3
"""How many texts a row gives to an input that takes several."""
FREE_SIZE = 16
"""The size of a tensor's dimension that may have any."""
GRAIN = 8
"""Pixels per random value along an image's edge: noise in each would make a JPEG far larger than any photograph's."""
JPEG_QUALITY = 90


def make_samples(ensemble: ensemble_pb2.Ensemble, count: int, image_size: int, seed: int = 0) -> list[dict[str, Value]]:
    """Make `count` rows that have every input; the same seed makes the same ones.

    Images are JPEGs of `image_size` x `image_size` pixels, texts are words, floats are normal, whole numbers 0 or 1.
    """
    import numpy

    draw = numpy.random.default_rng(seed)
    return [{spec.name: _make(spec, image_size, draw) for spec in ensemble.inputs} for _ in range(count)]


def _make(spec: ensemble_pb2.InputSpec, image_size: int, draw: "numpy.random.Generator") -> Value:
    if spec.kind == "image":
        return _image(image_size, spec.shape[-1] if spec.shape else 3, draw)
    if spec.kind == "text":
        texts = [_text(spec.max_tokens, draw) for _ in range(2 if spec.pair else min(COMPARED, max(1, spec.max_samples)))]
        return texts if len(texts) > 1 else texts[0]
    shape = [size if size >= 0 else FREE_SIZE for size in spec.shape]
    name = next(name for name, number in DTYPES.items() if number == spec.dtype)
    values = draw.standard_normal(shape) if "float" in name else draw.integers(0, 2, shape)
    return values.astype(name)


def _text(max_tokens: int, draw: "numpy.random.Generator") -> str:
    """A word is a token, or somewhat more: half of what fits at the most, so that none is cut."""
    return " ".join(draw.choice(WORDS, draw.integers(1, max(1, max_tokens // 2), endpoint=True)))


def _image(size: int, channels: int, draw: "numpy.random.Generator") -> bytes:
    import numpy
    from PIL import Image

    edge = -(-size // GRAIN) + 1
    coarse = draw.integers(0, 256, (edge, edge) if channels == 1 else (edge, edge, 3), dtype=numpy.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()

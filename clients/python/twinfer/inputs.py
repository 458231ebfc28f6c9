"""Turns plain Python values into a request's inputs; the value's type says what is sent.

numpy and Pillow are recognised only where the program has imported them already, as a caller who holds one of their objects has.
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2


class ArrayLike(Protocol):
    """A numpy array or a Pillow image, as a type checker sees it without either installed."""

    @property
    def __array_interface__(self) -> object:
        """The array protocol of numpy; Pillow's images have it too."""


# Path: an image file. bytes: an encoded image. str: a text. A list or tuple of str: several texts, or a pair.
# numpy array: a tensor. Pillow image: sent as PNG.
Value = Path | str | list[str] | tuple[str, ...] | bytes | bytearray | memoryview | ArrayLike | tensor_pb2.Tensor | pb.Input
Inputs = Mapping[str, Value]

ALLOWED = "a pathlib.Path (an image file), bytes (an encoded image), str (a text), a list of str, a numpy array or a PIL image"

# By numpy's names; bfloat16 is ml_dtypes' own.
DTYPES: dict[str, tensor_pb2.DataType] = {
    "bool": tensor_pb2.DATA_TYPE_BOOL,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
    "int8": tensor_pb2.DATA_TYPE_INT8,
    "int16": tensor_pb2.DATA_TYPE_INT16,
    "int32": tensor_pb2.DATA_TYPE_INT32,
    "int64": tensor_pb2.DATA_TYPE_INT64,
    "float16": tensor_pb2.DATA_TYPE_FP16,
    "bfloat16": tensor_pb2.DATA_TYPE_BF16,
    "float32": tensor_pb2.DATA_TYPE_FP32,
    "float64": tensor_pb2.DATA_TYPE_FP64,
}

ORIENTATION = 0x0112
"""EXIF's tag for how a photograph was held: 1 upright, to 8."""


def make_input(name: str, value: Value) -> pb.Input:
    """Return the value as an `Input`.

    Raises TypeError for a value, a dtype or an image's mode that cannot be sent, OSError for a file that cannot be read.
    """
    match value:
        case str():
            return pb.Input(text=value)
        case list() | tuple() if all(isinstance(text, str) for text in value):
            return pb.Input(texts=pb.TextList(values=value))
        case bytes() | bytearray() | memoryview():
            return pb.Input(image=bytes(value))
        case Path():
            return pb.Input(image=value.read_bytes())
        case tensor_pb2.Tensor():
            return pb.Input(tensor=value)
        case pb.Input():
            return value
    # Pillow first: its images speak numpy's protocol too.
    if _is_pillow(value):
        return pb.Input(image=_png(name, value))
    if _is_numpy(value):
        return pb.Input(tensor=_tensor(name, value))
    raise TypeError(f"inputs[{name!r}] is a {type(value).__name__}; allowed: {ALLOWED}.")


def takes_time(value: Value) -> bool:
    """Whether making the input reads a file or compresses pixels: work that an event loop hands to a thread."""
    return isinstance(value, Path) or _is_pillow(value)


def _is_pillow(value: object) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _is_numpy(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def _png(name: str, image: Any) -> bytes:
    if image.mode in ("F", "I", "I;16L", "I;16N"):
        # The first two have no defined white; Pillow would make them nearly all black, or all white.
        allowed = "8 or 16 bits per channel, as 'RGB', 'L' and 'I;16' have them"
        raise TypeError(f"inputs[{name!r}] is a PIL image of mode {image.mode!r}; allowed: {allowed}.")
    image.load()  # what it reads with the pixels may be upright already
    exif = sys.modules["PIL.Image"].Exif()
    # As it stands in the file; the service turns the image upright.
    if (orientation := image.getexif().get(ORIENTATION)) in range(2, 9):
        exif[ORIENTATION] = orientation
    # PNG has no room for CMYK, YCbCr, LAB and HSV.
    savable = image if image.mode in ("1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA") else image.convert("RGB")
    encoded = io.BytesIO()
    savable.save(encoded, format="PNG", exif=exif)
    return encoded.getvalue()


def _tensor(name: str, array: Any) -> tensor_pb2.Tensor:
    dtype = DTYPES.get(array.dtype.name)
    if dtype is None:
        raise TypeError(f"inputs[{name!r}] has the dtype {array.dtype}; allowed: {', '.join(DTYPES)}.")
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=little_endian.tobytes(order="C"))

"""Tensors as they travel, in either protocol: the element types by name, and arrays that look at a message's bytes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InvalidInput
from ..types import Array

MAX_RANK = 16
MAX_TENSOR_BYTES = 2**31 - 1
"""More than any message holds."""

DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The element types by the name that both protocols have for them; `twinfer.v1` leads it with DATA_TYPE_, and has fewer.

NumPy has no BF16: it is read as the upper half of float32.
"""
NAME_OF_DTYPE: Mapping[str, str] = {str(dtype): name for name, dtype in DTYPES.items() if name != "BF16"}
"""The same names by NumPy's: "float32" is FP32."""


def check_shape(field: str, shape: Sequence[int], item_bytes: int) -> None:
    """Raise InvalidInput for a shape that no message can hold, whatever its data say."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"{field}.shape: found {len(shape)} dimensions; allowed: at most {MAX_RANK}")
    if min(shape, default=0) < 0:
        raise InvalidInput(f"{field}.shape: found {list(shape)}; allowed: sizes of at least 0")
    if math.prod(size for size in shape if size) * item_bytes > MAX_TENSOR_BYTES:  # even an empty one has strides that overflow
        raise InvalidInput(f"{field}.shape: found {list(shape)}; allowed: at most {MAX_TENSOR_BYTES} bytes in all")


def read_array(field: str, name: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """Return row-major, little-endian bytes as a read-only array, without a copy but for BF16, which becomes float32.

    name: an element type of DTYPES. shape: one that `check_shape` has let pass. Raises InvalidInput where the bytes are others.
    """
    size_bytes = math.prod(shape) * DTYPES[name].itemsize
    if len(data) != size_bytes:
        raise InvalidInput(f"{field}: found {len(data)} bytes; allowed: {size_bytes}, as {name} {list(shape)} says")
    if name == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"{field}: found a byte that is neither 0 nor 1; allowed: 0 or 1, as BOOL says")
    array = np.frombuffer(data, DTYPES[name]).reshape(shape)
    return np.left_shift(array, 16, dtype=np.uint32).view(np.float32) if name == "BF16" else array

"""The protocol's datatypes, and tensors as bytes or as lists of elements. Nothing is copied that need not be."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import InvalidInput, quote
from ...types import Array
from ..codec import MAX_RANK, MAX_TENSOR_BYTES
from . import grpc_service_pb2 as pb

BYTES = "BYTES"
LENGTH_BYTES = 4
"""The little-endian length before each element of a BYTES tensor."""

Elements = list[bytes]
"""A BYTES tensor, row-major."""

# BF16 has no NumPy type: it is read as the upper half of float32.
_DTYPES: Mapping[str, np.dtype[np.generic]] = {
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
DATATYPE_OF_NAME = {str(dtype): name for name, dtype in _DTYPES.items() if name != "BF16"}
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def check_shape(field: str, datatype: str, shape: Sequence[int]) -> None:
    """Raise InvalidInput unless the protocol knows the datatype, and the shape has rows and a size that a message can hold."""
    if datatype != BYTES and datatype not in _DTYPES:
        raise InvalidInput(f"{field}.datatype: found {quote(datatype)}; allowed: {', '.join((*_DTYPES, BYTES))}")
    if not 1 <= len(shape) <= MAX_RANK:
        raise InvalidInput(f"{field}.shape: found {len(shape)} dimensions; allowed: 1 to {MAX_RANK}, rows first")
    if any(size < 0 for size in shape):
        raise InvalidInput(f"{field}.shape: found {list(shape)}; allowed: sizes of at least 0")
    item_bytes = LENGTH_BYTES if datatype == BYTES else _DTYPES[datatype].itemsize
    if math.prod(size for size in shape if size) * item_bytes > MAX_TENSOR_BYTES:  # even an empty one has strides that overflow
        raise InvalidInput(f"{field}.shape: found {list(shape)}; allowed: at most {MAX_TENSOR_BYTES} bytes in all")


def read_raw(field: str, datatype: str, shape: Sequence[int], data: bytes) -> Array | Elements:
    """Look at raw bytes as a tensor of a shape that `check_shape` let pass; raises InvalidInput."""
    count = math.prod(shape)
    if datatype == BYTES:
        return _split(field, count, data)
    dtype = _DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        allowed = f"{count * dtype.itemsize}, as {datatype} {list(shape)} says"
        raise InvalidInput(f"{field}: found {len(data)} bytes; allowed: {allowed}")
    if datatype == "BOOL" and np.frombuffer(data, dtype=np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"{field}: found a byte that is neither 0 nor 1; allowed: 0 or 1, as BOOL says")
    array = np.frombuffer(data, dtype).reshape(shape)
    return np.left_shift(array, 16, dtype=np.uint32).view(np.float32) if datatype == "BF16" else array


def read_contents(field: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents) -> Array | Elements:
    """Read a tensor's typed elements; its shape is one that `check_shape` let pass. Raises InvalidInput."""
    count, wanted = math.prod(shape), _CONTENTS.get(datatype)
    if wanted is None:
        raise InvalidInput(f"{field}.contents: found datatype {datatype}; allowed: raw_input_contents, as there is no list for it")
    filled = [found.name for found, _ in contents.ListFields()]
    if filled not in ([wanted], []):
        raise InvalidInput(f"{field}.contents: found {', '.join(filled)}; allowed: {wanted}, as datatype {datatype} says")
    elements = getattr(contents, wanted)
    if len(elements) != count:
        raise InvalidInput(f"{field}.contents: found {len(elements)} elements; allowed: {count}, as shape {list(shape)} says")
    if datatype == BYTES:
        return list(elements)
    dtype = _DTYPES[datatype]
    wide = np.array(elements, np.int64 if wanted in ("int_contents", "uint_contents") else dtype)
    if wide.dtype != dtype and wide.size:
        limits, low, high = np.iinfo(dtype.type), wide.min(), wide.max()  # type: ignore[type-var]  # an integer's
        if low < limits.min or high > limits.max:
            found = low if low < limits.min else high
            raise InvalidInput(f"{field}.contents: found {found}; allowed: {limits.min} to {limits.max}, as {datatype} says")
    return wide.astype(dtype, copy=False).reshape(shape)


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Write the elements of a BYTES tensor, each behind its length."""
    return b"".join(len(element).to_bytes(LENGTH_BYTES, "little") + element for element in elements)


def _split(field: str, count: int, data: bytes) -> Elements:
    """Split the bytes of a BYTES tensor at the lengths between them."""
    if count * LENGTH_BYTES > len(data):
        raise InvalidInput(f"{field}: found {len(data)} bytes; allowed: at least {LENGTH_BYTES} for each of {count} elements")
    elements, place = [], 0
    for number in range(count):
        begin = place + LENGTH_BYTES
        end = begin + int.from_bytes(data[place:begin], "little")
        if begin > len(data) or end > len(data):
            raise InvalidInput(
                f"{field}: element {number} ends at byte {max(begin, end)}; allowed: at most {len(data)}, where the data end"
            )
        elements.append(data[begin:end])
        place = end
    if place != len(data):
        raise InvalidInput(f"{field}: found {len(data) - place} bytes behind the last element; allowed: none")
    return elements

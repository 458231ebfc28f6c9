"""What only this protocol's tensors have: BYTES, whose elements are texts or files, and lists of typed elements."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import InvalidInput, quote
from ...types import Array
from ..tensors import DTYPES, MAX_RANK, check_shape, read_array
from . import grpc_service_pb2 as pb

BYTES = "BYTES"
LENGTH_BYTES = 4
"""The little-endian length before each element of a BYTES tensor."""

Elements = list[bytes]
"""A BYTES tensor, row-major."""

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


def check_tensor(field: str, datatype: str, shape: Sequence[int]) -> None:
    """Raise InvalidInput unless the datatype is known, and the shape has a batch dimension and a size that a message can hold."""
    if datatype != BYTES and datatype not in DTYPES:
        raise InvalidInput(f"{field}.datatype: found {quote(datatype)}; allowed: {', '.join((*DTYPES, BYTES))}")
    if not shape:
        raise InvalidInput(f"{field}.shape: found 0 dimensions; allowed: 1 to {MAX_RANK}, the batch first")
    check_shape(field, shape, LENGTH_BYTES if datatype == BYTES else DTYPES[datatype].itemsize)


def read_raw(field: str, datatype: str, shape: Sequence[int], data: bytes) -> Array | Elements:
    """Return raw bytes as a tensor of a shape that `check_tensor` has let pass; raises InvalidInput."""
    return _split_elements(field, math.prod(shape), data) if datatype == BYTES else read_array(field, datatype, shape, data)


def read_contents(field: str, datatype: str, shape: Sequence[int], contents: pb.InferTensorContents) -> Array | Elements:
    """Return a list of typed elements as a tensor of a shape that `check_tensor` has let pass; raises InvalidInput."""
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
    dtype = DTYPES[datatype]
    wide = np.array(elements, np.int64 if wanted in ("int_contents", "uint_contents") else dtype)
    array = wide.astype(dtype, copy=False)
    if wide.dtype != dtype and (lost := wide != array).any():
        limits = np.iinfo(dtype.type)  # type: ignore[type-var]  # an integer's
        raise InvalidInput(f"{field}.contents: found {wide[lost][0]}; allowed: {limits.min} to {limits.max}, as {datatype} says")
    return array.reshape(shape)


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Return the bytes of a BYTES tensor: each element behind its length."""
    return b"".join(len(element).to_bytes(LENGTH_BYTES, "little") + element for element in elements)


def _split_elements(field: str, count: int, data: bytes) -> Elements:
    """Split the bytes of a BYTES tensor at the lengths between its elements."""
    elements, position = [], 0
    for index in range(count):
        begin = position + LENGTH_BYTES
        end = begin + int.from_bytes(data[position:begin], "little") if begin <= len(data) else begin
        if end > len(data):
            raise InvalidInput(f"{field}: element {index} ends at byte {end}; allowed: at most {len(data)}, where the data end")
        elements.append(data[begin:end])
        position = end
    if position != len(data):
        raise InvalidInput(f"{field}: found {len(data) - position} bytes behind the last element; allowed: none")
    return elements

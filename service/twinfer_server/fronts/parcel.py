"""Parcels: a few bytes and arrays that are written into shared memory in one go, and looked at there."""

import struct
from collections.abc import Sequence

import numpy as np

from ..rows import Array
from .cells import Bytes

ALIGNMENT = 64
"""Of every array's first byte: what vector instructions like best, and more than any dtype asks for."""
LARGE_BYTES = 64 * 1024
"""From this size on it is worth looking whether two arrays are the same memory: one tensor may go to several members."""

DTYPES = tuple(
    np.dtype(name)
    for name in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
)  # fmt: skip
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}

_HEAD = struct.Struct("<IH")
_ARRAY = struct.Struct("<BBQ")


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Parcel:
    """What is to be written: `head`, and `arrays` of any shape, contiguous or not."""

    def __init__(self, head: bytes, arrays: Sequence[Array]) -> None:
        """Plan where everything will lie. `size_bytes` says how much room it needs."""
        table_bytes = sum(_ARRAY.size + 8 * array.ndim for array in arrays)
        end = _align(_HEAD.size + len(head) + table_bytes)
        table, self._places = bytearray(), list[tuple[int, Array]]()
        known: dict[tuple[object, ...], int] = {}
        for array in arrays:
            offset, key = end, None
            if array.nbytes >= LARGE_BYTES:
                key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype)
                offset = known.setdefault(key, end)
            if offset == end:
                self._places.append((offset, array))
                end = _align(end + array.nbytes)
            table += _ARRAY.pack(_CODES[array.dtype], array.ndim, offset)
            table += struct.pack(f"<{array.ndim}Q", *array.shape)
        self._begin = _HEAD.pack(len(head), len(arrays)) + head + table
        self.size_bytes = end

    def write(self, room: Bytes) -> None:
        """Write everything into `room`, uint8 [at least size_bytes]."""
        room[: len(self._begin)] = np.frombuffer(self._begin, dtype=np.uint8)
        for offset, array in self._places:
            place: Array = room[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
            place[...] = array


def unpack(room: Bytes) -> tuple[bytes, list[Array]]:
    """Give a parcel's head, and its arrays as views of `room`."""
    data = room.data
    head_bytes, count = _HEAD.unpack_from(data)
    at = _HEAD.size + head_bytes
    head = data[_HEAD.size : at].tobytes()
    arrays: list[Array] = []
    for _ in range(count):
        code, rank, offset = _ARRAY.unpack_from(data, at)
        shape: tuple[int, ...] = struct.unpack_from(f"<{rank}Q", data, at + _ARRAY.size)
        at += _ARRAY.size + 8 * rank
        dtype = DTYPES[code]
        size = dtype.itemsize
        for length in shape:
            size *= length
        arrays.append(room[offset : offset + size].view(dtype).reshape(shape))
    return head, arrays

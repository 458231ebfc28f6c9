"""Shared memory, divided into cells; whoever writes into it decides what lies where."""

import mmap
import os
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

CELL_BYTES = 4096
"""A page: what nobody has used yet takes no memory, and few rows of texts or numbers need more."""

Bytes = NDArray[np.uint8]


class SharedMemory:
    """Memory without a name that two processes have mapped; it is gone when the last of them, and the last view, are."""

    def __init__(self, size_bytes: int, fd: int = -1) -> None:
        """Map the memory behind `fd`, which is taken over, or make new memory of at least `size_bytes`; only Linux can.

        Raises OSError, and then `fd` is closed.
        """
        self.fd = os.memfd_create("twinfer", os.MFD_CLOEXEC) if fd < 0 else fd
        try:
            if fd < 0:
                os.ftruncate(self.fd, -(-size_bytes // CELL_BYTES) * CELL_BYTES)
            self.size_bytes = os.fstat(self.fd).st_size
            self._map = mmap.mmap(self.fd, self.size_bytes)
        except OSError:
            self.close_fd()
            raise

    def view(self, offset: int, size_bytes: int) -> Bytes:
        """Look at a part of it, uint8 [size_bytes], without a copy; every further view of this one keeps the array alive."""
        return np.frombuffer(self._map, dtype=np.uint8, count=size_bytes, offset=offset)

    def close_fd(self) -> None:
        """Close the descriptor, which nobody needs once both have mapped the memory."""
        os.close(self.fd)
        self.fd = -1


class Cells:
    """Which cells of a memory are free. What is large takes several, one behind the other. Not thread-safe."""

    def __init__(self, size_bytes: int) -> None:
        """Begin with all of them free."""
        self._free = [(0, size_bytes // CELL_BYTES)]
        """Stretches of free cells, first cell and count, in order; no two of them touch."""
        self._taken: dict[int, int] = {}

    @property
    def taken(self) -> int:
        """How many cells are taken."""
        return sum(self._taken.values())

    def take(self, size_bytes: int) -> int | None:
        """Take cells for so many bytes and give the offset of the first; None if there is no such stretch.

        The first stretch that is long enough, so that the memory that is used stays small where little is in hand.
        """
        wanted = -(-size_bytes // CELL_BYTES) or 1
        for place, (first, count) in enumerate(self._free):
            if count >= wanted:
                self._free[place : place + 1] = [(first + wanted, count - wanted)] if count > wanted else []
                self._taken[first] = wanted
                return first * CELL_BYTES
        return None

    def free(self, offset: int) -> None:
        """Give back the cells that `take` gave at `offset`; raises KeyError if they are not taken."""
        first = offset // CELL_BYTES
        count = self._taken.pop(first)
        place = bisect_left(self._free, (first, 0))
        if place < len(self._free) and self._free[place][0] == first + count:
            count += self._free.pop(place)[1]
        if place and sum(self._free[place - 1]) == first:
            place -= 1
            first, before = self._free.pop(place)
            count += before
        self._free.insert(place, (first, count))

"""The memory between the processes: cells that never overlap, and parcels that come out as they went in."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twinfer_server.fronts.cells import CELL_BYTES, Cells, SharedMemory
from twinfer_server.fronts.parcel import DTYPES, LARGE_BYTES, Parcel, unpack
from twinfer_server.rows import Array

CELLS = 12


class CellsMachine(RuleBasedStateMachine):
    """Takes and frees in any order, against a plain list of who has which cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = Cells(CELLS * CELL_BYTES)
        self.owners: list[int | None] = [None] * CELLS

    @rule(size=some.integers(0, (CELLS + 1) * CELL_BYTES))
    def take(self, size: int) -> None:
        wanted = max(1, -(-size // CELL_BYTES))
        places = (
            first for first in range(CELLS - wanted + 1) if not any(o is not None for o in self.owners[first : first + wanted])
        )
        expected = next(places, None)
        found = self.cells.take(size)
        assert found == (None if expected is None else expected * CELL_BYTES)
        if expected is not None:
            self.owners[expected : expected + wanted] = [expected] * wanted

    @precondition(lambda self: any(owner is not None for owner in self.owners))
    @rule(data=some.data())
    def free(self, data: some.DataObject) -> None:
        owner = data.draw(some.sampled_from(sorted({owner for owner in self.owners if owner is not None})))
        self.cells.free(owner * CELL_BYTES)
        self.owners = [None if other == owner else other for other in self.owners]

    @invariant()
    def counts(self) -> None:
        assert self.cells.taken == sum(owner is not None for owner in self.owners)


TestCells = CellsMachine.TestCase


def test_cells_that_are_not_taken_cannot_be_freed() -> None:
    cells = Cells(CELLS * CELL_BYTES)
    with pytest.raises(KeyError):
        cells.free(0)


def through(head: bytes, arrays: list[Array]) -> tuple[bytes, list[Array]]:
    """Write a parcel into one mapping of a memory and look at it through another."""
    parcel = Parcel(head, arrays)
    memory = SharedMemory(CELL_BYTES + parcel.size_bytes)
    other = SharedMemory(0, memory.fd)
    parcel.write(memory.view(CELL_BYTES, parcel.size_bytes))
    memory.close_fd()
    return unpack(other.view(CELL_BYTES, parcel.size_bytes))


any_array = some.sampled_from(DTYPES).flatmap(
    lambda dtype: some_numpy.arrays(dtype, some_numpy.array_shapes(min_dims=0, min_side=0, max_side=5))
)


@given(some.binary(max_size=200), some.lists(any_array, max_size=5))
def test_a_parcel_comes_out_as_it_went_in(head: bytes, arrays: list[Array]) -> None:
    found_head, found = through(head, arrays)
    assert found_head == head
    assert [(array.dtype, array.shape, array.tobytes()) for array in found] == [
        (array.dtype, array.shape, array.tobytes()) for array in arrays
    ]


def test_an_array_that_is_not_contiguous_is_laid_out_anew() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::-1, ::2].T
    assert np.array_equal(through(b"", [array])[1][0], array)


def test_a_large_array_of_several_members_is_written_once() -> None:
    array = np.zeros(LARGE_BYTES, dtype=np.uint8)
    parcel = Parcel(b"", [array[np.newaxis], array[np.newaxis], array])
    assert parcel.size_bytes < 2.1 * LARGE_BYTES, "the third has another shape, and is written for itself"
    assert all(np.array_equal(found.ravel(), array) for found in through(b"", [array[np.newaxis], array[np.newaxis], array])[1])


def test_the_views_of_a_part_keep_it_alive_and_nothing_else_does() -> None:
    """The part is only then written over when its last array is gone."""
    memory = SharedMemory(CELL_BYTES)
    memory.close_fd()
    parcel = Parcel(b"head", [np.arange(6), np.arange(3)])
    room = memory.view(0, parcel.size_bytes)
    parcel.write(room)
    gone = weakref.ref(room)
    arrays = unpack(room)[1]
    last = arrays[1][1:]
    del room, arrays, parcel
    gc.collect()
    assert gone() is not None
    del last
    assert gone() is None

"""The rows that wait, in the order in which they board."""

import heapq
import itertools
from collections.abc import Iterator

from ..types import Priority, Request

AGEING_SECONDS = {Priority.HIGH: -1.0, Priority.NORMAL: 0.0, Priority.LOW: 1.0}
"""How much later than it came a row counts as having come: a low row lets the normal ones of the next second pass, no more."""

CROWD_SECONDS = 1.0
"""As much later for a row that came with more rows before it than a flight carries, or more where those flights take longer."""


class RowQueue:
    """A priority queue of rows. Not thread-safe: the batcher's lock guards it."""

    def __init__(self, batch_size: int, flight_seconds: float) -> None:
        """Begin empty; a flight carries so many rows and takes about so long."""
        self._flight_rows = batch_size
        self._flight_seconds = flight_seconds
        self._heap: list[tuple[float, int, Request]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        """Count the rows, those answered meanwhile included."""
        return len(self._heap)

    def put(self, row: Request) -> None:
        """Let a row wait from its `ready_at` on."""
        rank = row.ready_at + AGEING_SECONDS[row.request.priority]
        if row.place >= self._flight_rows:
            # Whoever comes while the first flight's worth of a crowd flies goes before the rest of it.
            rank += max(CROWD_SECONDS, row.place // self._flight_rows * self._flight_seconds)
        heapq.heappush(self._heap, (rank, next(self._order), row))

    def take_in_order(self) -> Iterator[Request]:
        """Take rows out, first in rank first; rows that somebody has answered meanwhile are dropped."""
        while self._heap:
            row = heapq.heappop(self._heap)[2]
            if not row.is_answered:
                yield row

    def block(self, now: float) -> None:
        """Note that all that wait do so for a slot, from `now` on if not before: a flight takes off without them."""
        for _, _, row in self._heap:
            row.blocked_at = row.blocked_at or now

    def discard_answered(self) -> None:
        """Drop every row that somebody has answered, cancelled or failed."""
        self._heap = [entry for entry in self._heap if not entry[2].is_answered]
        heapq.heapify(self._heap)

"""The requests that wait for a batch, in the order in which they are taken."""

import heapq
import itertools
from collections.abc import Iterator

from ..types import Priority, Request

AGEING_SECONDS = {Priority.HIGH: -1.0, Priority.NORMAL: 0.0, Priority.LOW: 1.0}
"""How much later than it came a request counts as having come: a low one lets the normal ones of the next second pass, no more."""
LARGE_CALL_SECONDS = 1.0
"""As much later at the least for a request of a large call that no first batch of it can hold."""


class RequestQueue:
    """A priority queue of requests. Not thread-safe: the scheduler's lock guards it."""

    def __init__(self, max_batch_size: int, batch_seconds: float) -> None:
        """Begin empty; a batch holds so many requests and takes about so long."""
        self._max_batch_size = max_batch_size
        self._batch_seconds = batch_seconds
        self._heap: list[tuple[float, int, Request]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        """Count the requests, those answered meanwhile included."""
        return len(self._heap)

    def put(self, request: Request) -> None:
        """Let a request wait from its `ready_at` on."""
        rank = request.ready_at + AGEING_SECONDS[request.request.priority]
        if request.index >= self._max_batch_size:
            # Other callers' requests that come while the first batch of a large call computes go before the rest of that call.
            rank += max(LARGE_CALL_SECONDS, request.index // self._max_batch_size * self._batch_seconds)
        heapq.heappush(self._heap, (rank, next(self._order), request))

    def take_in_order(self) -> Iterator[Request]:
        """Take requests out, first in rank first; those that have been answered or cancelled meanwhile are dropped."""
        while self._heap:
            request = heapq.heappop(self._heap)[2]
            if not request.is_answered:
                yield request

    def mark_blocked(self, now: float) -> None:
        """Note that all that wait do so for streams or buffers, from `now` on if not before."""
        for _, _, request in self._heap:
            request.blocked_at = request.blocked_at or now

    def drop_answered(self) -> None:
        """Drop every request that has been answered or cancelled."""
        if any(request.is_answered for _, _, request in self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].is_answered]
            heapq.heapify(self._heap)

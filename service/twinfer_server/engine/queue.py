"""The requests that wait for a batch, in the order in which they are taken."""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..types import Priority, Request

AGEING_SECONDS = {Priority.HIGH: -1.0, Priority.NORMAL: 0.0, Priority.LOW: 1.0}
"""How much later than it came a request counts as having come: a low one lets the normal ones of the next second pass, no more."""
LARGE_CALL_SECONDS = 1.0
"""As much later at the least for a request of a large call that no first batch of it can hold."""

Entry = tuple[float, int, Request]
"""A request's rank, which of two equal ones came first, and the request."""


@dataclass(slots=True)
class Line:
    """The requests of one caller, a heap, and the virtual time at which the first of them may begin."""

    start: float
    heap: list[Entry] = field(default_factory=list)


class RequestQueue:
    """A priority queue of the requests of each caller, and turns among callers. Not thread-safe: the scheduler's lock guards it.

    Callers have turns, so that one that asks for more than its share waits for itself and not the others for it. A request begins
    when the caller's one before has ended, in a virtual time that counts samples, and the earliest is taken first: start-time fair
    queueing (Goyal, Vin & Cheng, SIGCOMM 1996). The rank orders the requests of one caller, and those of callers that have had as
    much; so priority does not help a caller to more than its share.
    """

    def __init__(self, max_batch_size: int, batch_seconds: float) -> None:
        """Begin empty; a batch holds so many requests and takes about so long."""
        self._max_batch_size = max_batch_size
        self._batch_seconds = batch_seconds
        self._lines: dict[str, Line] = {}
        self._virtual_time = 0.0
        """The start of the request that was taken last."""
        self._count = 0
        self._order = itertools.count()

    def __len__(self) -> int:
        """Count the requests, those answered meanwhile included."""
        return self._count

    def put(self, request: Request) -> None:
        """Let a request wait from its `ready_at` on."""
        rank = request.ready_at + AGEING_SECONDS[request.request.priority]
        if request.index >= self._max_batch_size:
            # Other callers' requests that come while the first batch of a large call computes go before the rest of that call.
            rank += max(LARGE_CALL_SECONDS, request.index // self._max_batch_size * self._batch_seconds)
        line = self._lines.get(request.request.caller)
        if line is None:
            line = self._lines[request.request.caller] = Line(self._virtual_time)
        heapq.heappush(line.heap, (rank, next(self._order), request))
        self._count += 1

    def take_in_order(self) -> Iterator[Request]:
        """Take requests out, first in turn and in rank first; those that have been answered or cancelled meanwhile are dropped.

        What is not put back has been taken, which `note_taken` must be told.
        """
        if len(self._lines) == 1:  # nobody to take turns with, as nearly always
            [line] = self._lines.values()
            while line.heap:
                request = heapq.heappop(line.heap)[2]
                self._count -= 1
                if not request.is_answered:
                    yield request
            return
        turns = [(line.start, *line.heap[0][:2], line.heap) for line in self._lines.values() if line.heap]
        heapq.heapify(turns)
        while turns:
            start, _, _, heap = turns[0]
            request = heapq.heappop(heap)[2]
            self._count -= 1
            if not heap:
                heapq.heappop(turns)
            elif len(turns) > 1:
                heapq.heapreplace(turns, (start + (0 if request.is_answered else _count_samples(request)), *heap[0][:2], heap))
            if not request.is_answered:
                yield request

    def note_taken(self, requests: Iterable[Request]) -> None:
        """Count requests that are computed as the turns of their callers."""
        if len(self._lines) == 1:
            return
        for request in requests:
            line = self._lines[request.request.caller]
            self._virtual_time = max(self._virtual_time, line.start)
            line.start += _count_samples(request)
        # A caller without requests is forgotten when it is ahead of none that has some.
        latest = self._virtual_time if self._count else math.inf
        self._lines = {name: line for name, line in self._lines.items() if line.heap or line.start > latest}

    def mark_blocked(self, now: float) -> None:
        """Note that all that wait do so for streams or buffers, from `now` on if not before."""
        for line in self._lines.values():
            for _, _, request in line.heap:
                request.blocked_at = request.blocked_at or now

    def drop_answered(self) -> None:
        """Drop every request that has been answered or cancelled."""
        for line in self._lines.values():
            if any(request.is_answered for _, _, request in line.heap):
                self._count -= len(line.heap)
                line.heap = [entry for entry in line.heap if not entry[2].is_answered]
                self._count += len(line.heap)
                heapq.heapify(line.heap)


def _count_samples(request: Request) -> int:
    """Count what a request takes of a batch: the most samples that a member computes on for it."""
    return max((len(samples[0]) for samples in request.samples.values()), default=1)

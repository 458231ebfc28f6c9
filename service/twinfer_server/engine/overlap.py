"""How long a launch waits for more requests: only where calls overlap, and never for a lone caller."""

import time

from ..spec import BatchingSpec

LEVEL_SECONDS = 0.1
"""How long the number of calls that were in flight together is remembered."""


class OverlapWait:
    """Decides, from when requests come, whether idle streams wait a moment for more of them.

    Requests whose calls overlap come one by one, as the event loop hands them over; to launch each as it comes would make batches
    of one. So a launch waits until nothing has come for half of `max_delay_ms`, and for `max_delay_ms` at most.
    """

    def __init__(self, batching: BatchingSpec) -> None:
        """Begin without calls."""
        self._max_delay_seconds = batching.max_delay_ms / 1000
        self._max_batch_size = batching.max_batch_size
        self._level = 0
        """The most requests that were in flight together lately: when so many wait, no more can be expected."""
        self._level_at = 0.0
        self._is_overlapping = False
        self._waiting_since = 0.0
        self._waiting_before = 0

    def note_arrival(self, in_flight: int) -> None:
        """Note that a request has come, and that so many are in flight with it; any thread."""
        now = time.monotonic()
        if in_flight >= self._level or now - self._level_at > LEVEL_SECONDS:
            self._level, self._level_at = in_flight, now
        if in_flight > 1:
            self._is_overlapping = True

    def seconds_to_wait(self, now: float, waiting: int, is_busy: bool) -> float:
        """Return how long to wait before the next look, 0 to launch now; launch thread only.

        `is_busy` while a batch computes, and requests collect anyway.
        """
        is_enough = waiting >= min(self._max_batch_size, self._level)
        if not waiting or is_busy or is_enough or not self._max_delay_seconds or not self._is_overlapping:
            return self._launch_now(is_over=bool(waiting))
        if not self._waiting_since:
            self._waiting_since, self._waiting_before = now, 0
        left = self._waiting_since + self._max_delay_seconds - now
        if left <= 0 or waiting == self._waiting_before:
            return self._launch_now(is_over=True)
        self._waiting_before = waiting
        return min(left, self._max_delay_seconds / 2)

    def _launch_now(self, *, is_over: bool) -> float:
        self._waiting_since = 0.0
        if is_over:
            self._is_overlapping = False
        return 0.0

"""Admission: how much may be in flight at once. Event loop only."""

import time

from ..errors import Draining, Overloaded
from ..settings import ServerSettings

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.01, 5.0
RESERVED_PART = 8
"""One place of so many is kept for requests that come alone."""


class Admission:
    """Counts the requests and bytes in flight, refuses what is too much, and knows when the server drains."""

    def __init__(self, settings: ServerSettings) -> None:
        """Begin with nothing in flight."""
        self.requests = 0
        self.bytes = 0
        self.is_draining = False
        self._max_requests = settings.max_in_flight_requests
        self._max_bytes = settings.max_in_flight_bytes
        self._seconds_per_request = 0.001
        self._busy_since = 0.0
        """When the last responses went out, or later, when there was something in flight again."""

    def enter(self, size_bytes: int, requests: int = 1) -> None:
        """Admit so many requests, all or none; raises Draining or Overloaded. `leave` must follow."""
        if self.is_draining:
            raise Draining("the server is shutting down")
        # Calls that bring many requests leave some places to those that bring one.
        allowed = self._max_requests if requests == 1 else self._max_requests - self._max_requests // RESERVED_PART
        if self.requests and self.requests + requests > allowed:
            more = "" if requests == 1 else f" and this call has {requests}"
            raise Overloaded(
                f"{self.requests} requests are in flight{more}; allowed: {allowed}", retry_after_seconds=self._retry_after()
            )
        # A call that is alone is never too much: refused now, it would be refused for ever.
        if self.bytes and self.bytes + size_bytes > self._max_bytes:
            raise Overloaded(
                f"{self.bytes} bytes are in flight and this call has {size_bytes}; allowed: {self._max_bytes}",
                retry_after_seconds=self._retry_after(),
            )
        if not self.requests:
            self._busy_since = time.monotonic()
        self.requests += requests
        self.bytes += size_bytes

    def leave(self, size_bytes: int, requests: int = 1) -> None:
        """Let go of what `enter` admitted."""
        self.requests -= requests
        self.bytes -= size_bytes

    def note_responses(self, count: int) -> None:
        """Learn from `count` responses that went out together how fast requests are answered."""
        now = time.monotonic()
        self._seconds_per_request += 0.1 * ((now - self._busy_since) / count - self._seconds_per_request)
        self._busy_since = now

    def _retry_after(self) -> float:
        """Estimate when half of what is in flight will have been answered."""
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, 0.5 * self.requests * self._seconds_per_request))

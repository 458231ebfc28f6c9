"""Admission: how much the server takes in hand at once. Event loop only."""

import time

from ..errors import Draining, Overloaded
from ..settings import ServerSettings

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.01, 5.0
KEPT_PART = 8
"""One place of so many is kept for rows that come alone."""


class Admission:
    """Counts the rows and bytes in hand, refuses what is too much, and knows when the server drains."""

    def __init__(self, settings: ServerSettings) -> None:
        """Begin with nothing in hand."""
        self.rows = 0
        self.bytes = 0
        self.is_draining = False
        self._max_rows = settings.max_in_flight_requests
        self._max_bytes = settings.max_in_flight_bytes
        self._seconds_per_row = 0.001
        self._busy_since = 0.0
        """When the last answers went out, or later, when the server had something in hand again."""

    @property
    def idle_seconds(self) -> float:
        """How long nothing has been in hand; 0 while something is."""
        return 0.0 if self.rows else time.monotonic() - self._busy_since

    def enter(self, size_bytes: int, rows: int = 1) -> None:
        """Take a request of so many rows in hand, all or none; raises Draining or Overloaded. `leave` must follow."""
        if self.is_draining:
            raise Draining("the server is shutting down")
        # Those who come with many rows leave some places to those who come with one.
        allowed = self._max_rows if rows == 1 else self._max_rows - self._max_rows // KEPT_PART
        if self.rows and self.rows + rows > allowed:
            request = "" if rows == 1 else f" and this request has {rows}"
            raise Overloaded(f"{self.rows} rows are in hand{request}; allowed: {allowed}", retry_after_seconds=self._retry_after())
        # A request that is alone is never too much: refused now, it would be refused for ever.
        if self.bytes and self.bytes + size_bytes > self._max_bytes:
            raise Overloaded(
                f"{self.bytes} bytes are in hand and this request has {size_bytes}; allowed: {self._max_bytes}",
                retry_after_seconds=self._retry_after(),
            )
        if not self.rows:
            self._busy_since = time.monotonic()
        self.rows += rows
        self.bytes += size_bytes

    def leave(self, size_bytes: int, rows: int = 1) -> None:
        """Let go of what `enter` took in hand."""
        self.rows -= rows
        self.bytes -= size_bytes

    def note_answers(self, count: int) -> None:
        """Learn from `count` answers that went out together how fast rows are answered."""
        now = time.monotonic()
        self._seconds_per_row += 0.1 * ((now - self._busy_since) / count - self._seconds_per_row)
        self._busy_since = now

    def _retry_after(self) -> float:
        """Estimate when half of what is in hand will have been answered."""
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, 0.5 * self.rows * self._seconds_per_row))

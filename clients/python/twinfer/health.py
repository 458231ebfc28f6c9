"""Waiting until a server is ready, as far as it is the same for both clients.

grpc.health.v1 is spoken by hand: one string in, one enum out, frozen for good. So the client needs no further package,
and puts nothing into the descriptor pool of a program that has the real one.
"""

import time

import grpc

from twinfer.channel import SERVICE
from twinfer.errors import DeadlinePassed
from twinfer.statuses import error_from_call

CHECK = "/grpc.health.v1.Health/Check"
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5

_PASSING = {
    grpc.StatusCode.UNAVAILABLE,  # it was there and left: it may come back
    grpc.StatusCode.NOT_FOUND,  # it listens, and has not registered the service yet
    grpc.StatusCode.DEADLINE_EXCEEDED,  # nobody there; our own deadline follows
}


class Readiness:
    """One wait: what is asked, how long it may still take, what was found last."""

    def __init__(self, timeout: float) -> None:
        """Start the clock; timeout in seconds."""
        # A HealthCheckRequest: field 1, the service's name, shorter than 128 bytes.
        self.request = bytes([0x0A, len(SERVICE)]) + SERVICE.encode()
        self._timeout = timeout
        self._ends_at = time.monotonic() + timeout
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._found = "nobody answered"

    def remaining_seconds(self) -> float:
        """Return the time that is left. Raises DeadlinePassed if none is."""
        remaining = self._ends_at - time.monotonic()
        if remaining <= 0:
            raise DeadlinePassed(f"the server is not ready after {self._timeout:g} s: {self._found}.")
        return remaining

    def pause_seconds(self) -> float:
        """Return how long to wait before asking again; each time longer, never past the end."""
        pause = min(self._pause_seconds, self.remaining_seconds())
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        return pause

    def is_reached(self, reply: bytes) -> bool:
        """Whether a HealthCheckResponse says SERVING: field 1 is 1."""
        self._found = "it says that it is not serving"
        return reply == b"\x08\x01"

    def failed(self, failure: grpc.RpcError) -> None:
        """Note a failed check. Raises the failure as a TwinferError if asking again cannot help."""
        if failure.code() not in _PASSING:
            raise error_from_call(failure) from None
        if failure.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self._found = failure.details() or failure.code().name

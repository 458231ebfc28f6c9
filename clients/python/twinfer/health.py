"""Waiting until a server is ready, as far as both clients share it.

grpc.health.v1 is spoken by hand: one string in, one enum out, frozen for good. So the client needs no further package,
and puts nothing into the descriptor pool of a program that has the real one.
"""

import time

import grpc

from twinfer.channel import SERVICE
from twinfer.errors import DeadlinePassed, HandshakeFailed
from twinfer.statuses import error_from_call, note_proxy
from twinfer.tls import NO_CONNECTION

# A HealthCheckRequest: field 1, the service's name, shorter than 128 bytes.
REQUEST = bytes([0x0A, len(SERVICE)]) + SERVICE.encode()
# A HealthCheckResponse: field 1, SERVING.
SERVING = b"\x08\x01"
NO_ANSWER = "no server answered"
PAUSE_SECONDS = 0.05
"""Between two checks."""

_PASSING = {
    grpc.StatusCode.UNAVAILABLE,  # it was there and left: it may come back
    grpc.StatusCode.NOT_FOUND,  # it listens, and has not registered the service yet
    grpc.StatusCode.DEADLINE_EXCEEDED,  # no server is there; our own deadline follows
}


class Readiness:
    """One wait: how long it may still take, and what was found last."""

    def __init__(self, timeout: float, proxy: str) -> None:
        """Start the clock; timeout in seconds, `proxy` is what the checks go through, if they do."""
        self._proxy = proxy
        self._timeout = timeout
        self._ends_at = time.monotonic() + timeout
        self._found = NO_ANSWER + (f"; {note_proxy(proxy)}" if proxy else "")

    def remaining_seconds(self) -> float:
        """Return the time that is left. Raises DeadlinePassed if none is."""
        remaining = self._ends_at - time.monotonic()
        if remaining <= 0:
            raise DeadlinePassed(f"the server is not ready after {self._timeout:g} s: {self._found}.")
        return remaining

    def is_reached(self, reply: bytes) -> bool:
        """Whether the reply to a check says SERVING."""
        self._found = "it says that it is not serving"
        return reply == SERVING

    def failed(self, failure: grpc.RpcError) -> None:
        """Note a failed check. Raises the failure as a TwinferError if asking again cannot help."""
        error = error_from_call(failure, self._proxy)
        if failure.code() not in _PASSING or isinstance(error, HandshakeFailed):
            raise error from None
        if failure.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            is_there = NO_CONNECTION not in (failure.details() or "")
            self._found = error.text if is_there else f"{NO_ANSWER}: {error.text}"

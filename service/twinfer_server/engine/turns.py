"""Turns: requests that wait for a thread, each caller's in their order, and one turn of every caller after the other."""

import threading
from collections import deque
from collections.abc import Sequence

from ..types import Request


class Turns:
    """Requests of calls that wait, by caller; one caller's many calls hold up another's by one turn at the most.

    Source: fair queueing by round robin, Nagle, RFC 970 (1985).
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Sequence[Request]]] = {}
        """By caller, the next one first."""

    def put(self, requests: Sequence[Request]) -> None:
        """Let requests of one call wait, one at least; any thread."""
        with self._lock:
            self._waiting.setdefault(requests[0].request.caller, deque()).append(requests)

    def take(self) -> Sequence[Request]:
        """Take the requests of the next turn, of as many as have been put; any thread."""
        with self._lock:
            caller = next(iter(self._waiting))
            waiting = self._waiting.pop(caller)
            requests = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting  # behind the other callers
            return requests

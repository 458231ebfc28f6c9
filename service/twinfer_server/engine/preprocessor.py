"""The preprocessor: makes the members' samples of what callers sent, on threads of its own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import InternalError, Stage, TwinferError, detach
from ..inputs import RequestProcessor
from ..types import Request
from .workers import Workers

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.005
"""How long requests of one call are prepared before another call's turn comes, and before those that are ready are queued."""
SHARE_BYTES = 64 * 1024
"""For every so many bytes of a call another thread prepares some of its requests."""

OnReady = Callable[[Sequence[Request]], None]
OnFailure = Callable[[Request, TwinferError], None]


class Preprocessor:
    """Decodes and tokenizes the inputs of requests; the event loop waits for nothing and is told only of failures."""

    def __init__(self, processor: RequestProcessor, threads: int, on_ready: OnReady, on_failure: OnFailure) -> None:
        """Start the threads, which mostly are the ones to call `on_ready` with prepared requests, or `on_failure` with one."""
        self._processor = processor
        self._threads = threads
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._turns = Turns()
        self._workers = Workers("preprocess", threads)

    def prepare(self, requests: Sequence[Request], size_bytes: int) -> None:
        """Queue the requests of one call, for as many threads as its size is worth; event loop.

        Requests in which there is nothing to decode are prepared at once: handing them to a thread would take longer.
        """
        if all(self._processor.is_light(request.request) for request in requests):
            self._prepare_some(requests)
            return
        shares = min(self._threads, len(requests), 1 + size_bytes // SHARE_BYTES)
        for first in range(shares):
            self._wait_for_turn(requests[first::shares])

    def close(self) -> None:
        """End the threads behind what is queued."""
        self._workers.close()

    def _wait_for_turn(self, requests: Sequence[Request]) -> None:
        self._turns.put(requests)
        self._workers.do(self._take_turn)

    def _take_turn(self) -> None:
        self._prepare_some(self._turns.take())

    def _prepare_some(self, requests: Sequence[Request]) -> None:
        """Prepare requests until they are done or the turn is over; the others wait for another turn."""
        ends = time.monotonic() + TURN_SECONDS
        ready = []
        for position, request in enumerate(requests):
            if position and time.monotonic() > ends:
                self._wait_for_turn(requests[position:])
                break
            if not request.is_answered and self._prepare(request):
                ready.append(request)
        if ready:
            self._on_ready(ready)

    def _prepare(self, request: Request) -> bool:
        """Make a request's samples; whether that went well."""
        began = time.monotonic()
        try:
            request.samples = self._processor.prepare(request.request)
        except TwinferError as error:
            self._on_failure(request, detach(error))
            return False
        except Exception:
            logger.exception("preprocessing raised")
            text = "decoding raised an error; the server's log has it"
            self._on_failure(request, InternalError(text, stage=Stage.DECODE))
            return False
        request.ready_at = time.monotonic()
        request.decode_seconds = request.ready_at - began
        return True


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

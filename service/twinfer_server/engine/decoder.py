"""The decoder: makes samples of what callers sent, on threads of its own."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from ..errors import InternalError, Stage, TwinferError
from ..inputs import RequestProcessor
from ..types import Request
from .workers import Workers

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.005
"""How long rows of one request are decoded before somebody else's turn comes, and before those that are ready may fly."""

SHARE_BYTES = 64 * 1024
"""For every so many bytes of a request another thread is asked to decode some of its rows."""

OnReady = Callable[[Sequence[Request]], None]
OnFailure = Callable[[Request, TwinferError], None]


class Decoder:
    """Decodes the inputs of rows; the event loop waits for nothing and hears of it only where that fails."""

    def __init__(self, intake: RequestProcessor, threads: int, on_ready: OnReady, on_failure: OnFailure) -> None:
        """Start the threads, on which, mostly, `on_ready` is told of rows that can fly, and `on_failure` of one that cannot."""
        self._intake = intake
        self._threads = threads
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._workers = Workers("decode", threads)

    def decode(self, rows: Sequence[Request], size_bytes: int) -> None:
        """Queue the rows of one request, for as many threads as its size is worth; event loop.

        Rows in which there is nothing to decode are made ready at once: handing them to a thread would take longer.
        """
        if all(self._intake.is_light(row.request) for row in rows):
            self._take_turn(rows)
            return
        shares = min(self._threads, len(rows), 1 + size_bytes // SHARE_BYTES)
        for first in range(shares):
            self._workers.do(partial(self._take_turn, rows[first::shares]))

    def close(self) -> None:
        """End the threads behind what is queued."""
        self._workers.close()

    def _take_turn(self, rows: Sequence[Request]) -> None:
        """Decode rows until they are done or the turn is over; the others go behind what has come meanwhile."""
        ends = time.monotonic() + TURN_SECONDS
        ready = []
        for place, row in enumerate(rows):
            if place and time.monotonic() > ends:
                self._workers.do(partial(self._take_turn, rows[place:]))
                break
            if not row.is_answered and self._prepare(row):
                ready.append(row)
        if ready:
            self._on_ready(ready)

    def _prepare(self, row: Request) -> bool:
        """Make a row ready to fly; whether that went well."""
        began = time.monotonic()
        try:
            row.samples = self._intake.prepare(row.request)
        except TwinferError as error:
            self._on_failure(row, error.alone())
            return False
        except Exception:
            logger.exception("decoding raised")
            text = "decoding raised an error; the server's log has it"
            self._on_failure(row, InternalError(text, stage=Stage.DECODE))
            return False
        row.ready_at = time.monotonic()
        row.decode_seconds = row.ready_at - began
        return True

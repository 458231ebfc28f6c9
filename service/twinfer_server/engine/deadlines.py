"""Deadlines: by when a request must be answered, and the timer that rings then. Event loop only."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from ..errors import DeadlinePassed, InvalidOption
from ..settings import ServerSettings
from ..types import InferRequest, Request

REPLY_SECONDS_PER_REQUEST = 0.0002
"""What every further request of a reply takes to be written."""
FORGETTING_SECONDS = 1.0
"""The time constant with which a late reply is forgotten."""
MAX_SLACK_SECONDS = 0.25


class ReplySlack:
    """How long before its deadline a request is answered, for the reply has a way to go; learnt from how late replies are."""

    def __init__(self, settings: ServerSettings) -> None:
        """Begin with the slack of the settings, which is also the least."""
        self._settings = settings
        self._least = settings.reply_slack_seconds
        self._beyond = 0.0
        self._noted_at = 0.0

    def note(self, late_seconds: float) -> None:
        """Learn that the event loop has handed out a response so long after it was there; a peak is forgotten within seconds."""
        now = time.monotonic()
        beyond = self._current_beyond(now)
        self._beyond, self._noted_at = min(MAX_SLACK_SECONDS, max(beyond, 2 * late_seconds - self._least)), now

    def _current_beyond(self, now: float) -> float:
        return self._beyond * math.exp((self._noted_at - now) / FORGETTING_SECONDS) if self._beyond > 0 else 0.0

    def reply_by(self, request: InferRequest, count: int) -> float:
        """Find the time by which a request must be answered: its earliest deadline, less the slack for a reply of `count` requests.

        Raises InvalidOption and DeadlinePassed.
        """
        timeout = self._settings.default_timeout_seconds
        if request.timeout_seconds is not None:
            if not request.timeout_seconds > 0:
                raise InvalidOption(f"options.timeout: found {request.timeout_seconds} s; allowed: more than 0")
            timeout = min(timeout, request.timeout_seconds)
        deadline = request.arrived_at + timeout
        if request.deadline is not None:
            deadline = min(deadline, request.deadline)
        budget = deadline - request.arrived_at
        if budget <= 0:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        slack = self._least + self._current_beyond(time.monotonic()) + (count - 1) * REPLY_SECONDS_PER_REQUEST
        return deadline - min(slack, budget / 4)


class DeadlineTimer:
    """Rings for each request of one call whose time is up."""

    def __init__(self, requests: Sequence[Request], on_time_up: Callable[[Request], None]) -> None:
        """Start the timer, for at least one request."""
        self._requests = requests
        self._on_time_up = on_time_up
        self._loop = asyncio.get_running_loop()
        self._timer = self._start(time.monotonic())

    def cancel(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _start(self, now: float) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, min(request.reply_by for request in self._requests) - now), self._ring)

    def _ring(self) -> None:
        now = time.monotonic()
        for request in self._requests:
            if request.reply_by <= now and not request.is_answered:
                self._on_time_up(request)
        self._requests = [request for request in self._requests if request.reply_by > now and not request.is_answered]
        if self._requests:
            self._timer = self._start(now)

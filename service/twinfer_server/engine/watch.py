"""An alarm clock for the rows of one request."""

import asyncio
import time
from collections.abc import Callable, Sequence

from ..types import Request


class Watch:
    """Looks after stuck flights while rows wait, and rings for each whose time is up. Event loop only."""

    def __init__(
        self, rows: Sequence[Request], stall_seconds: float, look_for_stuck: Callable[[], float], on_time_up: Callable[[Request], None]
    ) -> None:  # fmt: skip
        """Start the clock, for at least one row. `look_for_stuck` gives the seconds after which another look may help."""
        self._rows = rows
        self._look_for_stuck = look_for_stuck
        self._on_time_up = on_time_up
        self._loop = asyncio.get_running_loop()
        budget = min(row.reply_by for row in rows) - time.monotonic()
        # Late enough to be rare, early enough for another member to be started and to end before the rows' time is up.
        self._timer = self._loop.call_later(max(0.0, min(stall_seconds, budget / 2)), self._look)

    def cancel(self) -> None:
        """Stop the clock."""
        self._timer.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        waiting = [row for row in self._rows if not row.is_answered]
        for row in waiting:
            if row.reply_by <= now:
                self._on_time_up(row)
        self._rows = [row for row in waiting if row.reply_by > now]
        if self._rows:
            left = min(row.reply_by for row in self._rows) - now
            self._timer = self._loop.call_later(min(left, self._look_for_stuck()), self._look)

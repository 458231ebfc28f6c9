"""A row's alarm clock."""

import asyncio
import time
from collections.abc import Callable

from ..rows import Row


class Watch:
    """Looks after stuck flights while a row waits, and rings when the row's time is up. Event loop only."""

    def __init__(
        self, row: Row, stall_seconds: float, look_for_stuck: Callable[[], float], on_time_up: Callable[[Row], None]
    ) -> None:  # fmt: skip
        """Start the clock. `look_for_stuck` gives the seconds after which another look may help."""
        self._row = row
        self._look_for_stuck = look_for_stuck
        self._on_time_up = on_time_up
        self._loop = asyncio.get_running_loop()
        budget = row.reply_by - time.monotonic()
        # Late enough to be rare, early enough for another member to be started and to end before the row's time is up.
        self._timer = self._loop.call_later(max(0.0, min(stall_seconds, budget / 2)), self._look)

    def cancel(self) -> None:
        """Stop the clock."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._row.reply_by - time.monotonic()
        if self._row.is_answered:
            return
        if left <= 0:
            self._on_time_up(self._row)
            return
        self._timer = self._loop.call_later(min(left, self._look_for_stuck()), self._look)

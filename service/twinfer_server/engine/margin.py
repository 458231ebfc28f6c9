"""The reply margin: how long before its deadline a row is answered, for the reply has a way to go, too."""

from ..errors import DeadlinePassed, InvalidOption
from ..settings import ServerSettings
from ..types import InferRequest

REPLY_SECONDS_PER_ROW = 0.0002
"""What every further row of a reply takes to be written."""


class ReplyMargin:
    """Learns how late replies are, and sets the times by which rows must be answered. Event loop only."""

    def __init__(self, settings: ServerSettings) -> None:
        """Begin with the margin of the settings, which is also the least."""
        self._settings = settings
        self._seconds = settings.reply_slack_seconds

    def note(self, late_seconds: float) -> None:
        """Learn that the event loop has handed out an answer so long after it was there."""
        # What the loop was late is what a reply needs on its way out; a peak is remembered for some hundred flights.
        self._seconds = max(self._settings.reply_slack_seconds, 2 * late_seconds, 0.99 * self._seconds)

    def reply_by(self, request: InferRequest, count: int) -> float:
        """Find the time by which the row must be answered: its earliest deadline, less the margin for the reply of `count` rows.

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
        return deadline - min(self._seconds + (count - 1) * REPLY_SECONDS_PER_ROW, budget / 4)

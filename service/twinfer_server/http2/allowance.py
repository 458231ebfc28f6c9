"""The allowance: how much a client may cost the server without being served anything."""

import time

from .frames import Code, ConnectionFault

AT_ONCE, PER_SECOND = 1000.0, 100.0
"""How much of it there is at once, and comes back in the long run."""
ANSWERED_CALL = 2
"""What a call gives back that has been answered, if only with an error: clients take note of each, some of them in two windows."""
BROKEN_CALL = 3
"""What a call costs that its client gives up or breaks: one more than its end gives back."""


class Allowance:
    """Counts what one client does to no end, such as to give calls up at once (CVE-2023-44487); too much ends its connection."""

    __slots__ = ("_is_left", "_since")

    def __init__(self) -> None:
        """Begin with as much as there can be."""
        self._is_left = AT_ONCE
        self._since = time.monotonic()

    def give(self, more: int) -> None:
        """Let the client off so much more, for it has been served: who is served much may err, and has to say, more."""
        self._is_left = min(AT_ONCE, self._is_left + more)

    def take(self, cost: int = 1) -> None:
        """Count something that served nobody; raises ConnectionFault when nothing is left."""
        now = time.monotonic()
        self._is_left = min(AT_ONCE, self._is_left + (now - self._since) * PER_SECOND) - cost
        self._since = now
        if self._is_left < 0:
            raise ConnectionFault(
                Code.ENHANCE_YOUR_CALM, "found too much that is to no end, such as calls that are given up at once"
            )

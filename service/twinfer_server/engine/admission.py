"""Admission: how much may be in flight at once, in all and of one caller. Event loop only."""

import time
from collections.abc import Mapping

from ..errors import Draining, Overloaded
from ..settings import ServerSettings
from ..types import CallerLimits
from .callers import RESERVED_PART, Allowance, Places

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.01, 5.0


class Admission:
    """Counts the requests and bytes in flight, refuses what is too much, and knows when the server drains."""

    def __init__(self, settings: ServerSettings) -> None:
        """Begin with nothing in flight, and with no limits of any one caller."""
        self.requests = Places(settings.max_in_flight_requests)
        self.bytes = Places(settings.max_in_flight_bytes)
        self.is_draining = False
        self._allowances: Mapping[str, Allowance] = {}
        self._seconds_per_request = 0.001
        self._busy_since = 0.0
        """When the last responses went out, or later, when there was something in flight again."""

    def limit(self, limits: Mapping[str, CallerLimits]) -> None:
        """Keep callers to limits of their own, by name, from now on."""
        before = {name: allowance.paid_until for name, allowance in self._allowances.items()}
        self._allowances = {name: Allowance(limit, before.get(name, 0.0)) for name, limit in limits.items()}

    def enter(self, caller: str, size_bytes: int, requests: int = 1) -> None:
        """Admit so many requests, all or none; raises Draining or Overloaded. `leave` must follow."""
        if self.is_draining:
            raise Draining("the server is shutting down")
        allowance, now = self._allowances.get(caller), time.monotonic()
        if allowance is not None:
            allowance.check(now, self.requests.held_by(caller), self.bytes.held_by(caller), requests, size_bytes)
        self._check_places(caller, size_bytes, requests)
        if allowance is not None:
            allowance.spend(now, requests)
        if not self.requests.taken:
            self._busy_since = now
        self.requests.take(caller, requests)
        self.bytes.take(caller, size_bytes)

    def _check_places(self, caller: str, size_bytes: int, requests: int) -> None:
        """Raise Overloaded where there is no place, in all or for a caller that has more than its fair share."""
        taken, allowed = self.requests.taken, self.requests.allowed(caller, requests)
        if requests > 1:  # calls that bring many requests leave some places to those that bring one
            allowed = min(allowed, self.requests.most - self.requests.most // RESERVED_PART)
        if taken and taken + requests > allowed:
            more = "" if requests == 1 else f" and this call has {requests}"
            raise Overloaded(f"{taken} requests are in flight{more}; allowed: {allowed}", retry_after_seconds=self._retry_after())
        # A call that is alone is never too much: refused now, it would be refused for ever.
        taken, allowed = self.bytes.taken, self.bytes.allowed(caller, size_bytes)
        if taken and taken + size_bytes > allowed:
            raise Overloaded(
                f"{taken} bytes are in flight and this call has {size_bytes}; allowed: {allowed}",
                retry_after_seconds=self._retry_after(),
            )

    def leave(self, caller: str, size_bytes: int, requests: int = 1) -> None:
        """Let go of what `enter` admitted."""
        self.requests.give_back(caller, requests)
        self.bytes.give_back(caller, size_bytes)

    def note_responses(self, count: int) -> None:
        """Learn from `count` responses that went out together how fast requests are answered."""
        now = time.monotonic()
        self._seconds_per_request += 0.1 * ((now - self._busy_since) / count - self._seconds_per_request)
        self._busy_since = now

    def _retry_after(self) -> float:
        """Estimate when half of what is in flight will have been answered."""
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, 0.5 * self.requests.taken * self._seconds_per_request))

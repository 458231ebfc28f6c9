"""Callers by name: the limits of each, and a fair share for each of what there is only so much of. Event loop only."""

from ..errors import Overloaded
from ..types import CallerLimits

RESERVED_PART = 8
"""One place of so many is kept: for callers with no more than their fair share, and for requests that come alone."""
BURST_SECONDS = 1.0
"""A caller that has been idle may ask at once for what it may ask for in so long."""
RETRY_SECONDS = 0.1
"""When a caller may come again that has too much in flight: when something of it is answered, which cannot be foreseen."""


class Places:
    """So many places, of calls, requests or bytes, and who has them.

    A caller may have any place that is free but for the last ones: those are kept for callers that have no more than their fair
    share. So one that asks for all of them is refused before the others are, and as its requests end the places go to the others,
    until each has what it asks for or as much as the greediest: max-min fairness (Bertsekas & Gallager, Data Networks, 6.5.2).
    Callers without a name are not told apart, and may have all.
    """

    def __init__(self, most: int) -> None:
        """Begin with all places free."""
        self.taken = 0
        self.most = most
        self._unreserved = max(1, most - max(1, most // RESERVED_PART))
        self._by_caller: dict[str, int] = {}

    def held_by(self, caller: str) -> int:
        """Return how many places a caller has."""
        return self._by_caller.get(caller, 0)

    def allowed(self, caller: str, count: int) -> int:
        """Return how many places may be taken in all, `count` more for the caller among them."""
        if not caller or self.taken + count <= self._unreserved:
            return self.most
        others = len(self._by_caller) - (caller in self._by_caller)
        # Another one may come, so none has all of them for its fair share.
        fair_share = self.most // (1 + max(1, others))
        return self.most if self.held_by(caller) + count <= fair_share else self._unreserved

    def take(self, caller: str, count: int) -> None:
        """Give places to a caller; `give_back` must follow."""
        self.taken += count
        self._by_caller[caller] = self._by_caller.get(caller, 0) + count

    def give_back(self, caller: str, count: int) -> None:
        """Take places back."""
        self.taken -= count
        left = self._by_caller[caller] - count
        if left:
            self._by_caller[caller] = left
        else:
            del self._by_caller[caller]


class Allowance:
    """What one caller may ask for, and when it may ask again."""

    def __init__(self, limits: CallerLimits, paid_until: float = 0.0) -> None:
        """Begin with limits, and with the time up to which the caller has already asked for all that it may."""
        self.paid_until = paid_until
        self._limits = limits

    def check(self, now: float, held_requests: int, held_bytes: int, requests: int, size_bytes: int) -> None:
        """Raise Overloaded for a call that is too much beside what the caller has in flight; nothing is counted."""
        _check("requests_in_flight", held_requests, requests, self._limits.requests_in_flight)
        _check("bytes_in_flight", held_bytes, size_bytes, self._limits.bytes_in_flight)
        rate = self._limits.requests_per_second
        if rate is not None and self.paid_until > now:  # a call of more than a burst is let in when nothing is owed
            wait = self.paid_until - now + requests / rate - max(BURST_SECONDS, 1 / rate)
            if wait > 0:
                text = f"the caller's requests_per_second: found {requests} more, {wait:.3f} s too early; allowed: {rate:g}"
                raise Overloaded(text, retry_after_seconds=wait)

    def spend(self, now: float, requests: int) -> None:
        """Count requests that are let in.

        Source: the generic cell rate algorithm, ITU-T I.371: a token bucket that is one point in time.
        """
        if self._limits.requests_per_second is not None:
            self.paid_until = max(now, self.paid_until) + requests / self._limits.requests_per_second


def _check(limit: str, held: int, more: int, allowed: int | None) -> None:
    """Raise Overloaded where `more` is too much beside what is held; without a hint where it always will be."""
    if allowed is not None and held + more > allowed:
        retry_after_seconds = RETRY_SECONDS if more <= allowed else None
        raise Overloaded(f"the caller's {limit}: found {held + more}; allowed: {allowed}", retry_after_seconds=retry_after_seconds)

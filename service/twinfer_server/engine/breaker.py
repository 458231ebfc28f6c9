"""Circuit breakers: a member that keeps failing or stalling is switched off, tried now and then, and switched on again.

A sliding window of the member's last flights decides, as in resilience4j's count-based breaker. What tries a member that is off is
a probe: a flight of made-up input, so that no caller's row is the one to find out.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from ..settings import ServerSettings

logger = logging.getLogger(__name__)

MAX_PROBE_SECONDS = 60.0


class Switch(IntEnum):
    """Whether a member takes part in flights, with the numbers of `twinfer.v1.BreakerState`."""

    ON = 1
    TRIPPED = 2
    OFF = 3


@dataclass(frozen=True, slots=True)
class SwitchState:
    """How a member is switched; `reason` says why it is not on, and since when."""

    switch: Switch = Switch.ON
    reason: str = ""


class Breaker:
    """One member's switch. Changed under the batcher's lock; `state` is replaced as a whole, so any thread may read it."""

    def __init__(self, member: str, settings: ServerSettings) -> None:
        """Begin switched on."""
        self.state = SwitchState()
        self.is_probing = False
        self.trips = 0
        self._member = member
        self._window: deque[bool] = deque(maxlen=settings.breaker_window)
        self._failures = settings.breaker_failures
        self._first_probe_seconds = settings.breaker_probe_seconds
        self._probe_seconds = self._first_probe_seconds
        """How long before the next probe; it grows with each until the member has got through a whole window of flights."""
        self._probe_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether rows fly with the member."""
        return self.state.switch is Switch.ON

    def note_flight(self, failure: str) -> None:
        """Learn how the member did in a flight of callers' rows; `failure` says what went wrong, and is empty if nothing did."""
        self._window.append(bool(failure))
        failures = sum(self._window)
        if not self.is_on:
            return
        if failure and self._failures and failures >= self._failures:
            self.trip(f"it failed in {failures} of its last {len(self._window)} flights, the last time because {failure}")
        elif len(self._window) == self._window.maxlen:
            self._probe_seconds = self._first_probe_seconds

    def note_probe(self, failure: str) -> None:
        """Learn how a probe ended; `failure` is empty if it went well."""
        self.is_probing = False
        if self.state.switch is not Switch.TRIPPED:
            return
        if failure:
            seconds = self._plan_probe()
            logger.info("member %s stays off, for %.1f s: the probe failed: %s", self._member, seconds, failure)
        else:
            self._switch(Switch.ON, "")

    def trip(self, why: str) -> None:
        """Switch the member off until a probe goes well."""
        self.trips += 1
        self._plan_probe()
        self._switch(Switch.TRIPPED, why)

    def set_by_hand(self, is_on: bool) -> None:
        """Switch the member as an operator wants it; switched on, also again, it has nothing held against it."""
        switch = Switch.ON if is_on else Switch.OFF
        if is_on:
            self._probe_seconds = self._first_probe_seconds
            self._window.clear()
        if self.state.switch is not switch:
            self._switch(switch, "" if is_on else "an operator has switched it off")

    def seconds_to_probe(self, now: float) -> float | None:
        """Say in how many seconds the member is to be tried, 0 if now; None if it is not, or is being tried."""
        if self.state.switch is not Switch.TRIPPED or self.is_probing:
            return None
        return max(0.0, self._probe_at - now)

    def _plan_probe(self) -> float:
        """Plan the next probe, and the one after it later; give the seconds until then."""
        seconds, self._probe_seconds = self._probe_seconds, min(2 * self._probe_seconds, MAX_PROBE_SECONDS)
        self._probe_at = time.monotonic() + seconds
        return seconds

    def _switch(self, switch: Switch, why: str) -> None:
        if switch is Switch.ON:
            self._window.clear()
        since = f"since {datetime.now(UTC).isoformat(timespec='seconds')}: {why}" if why else ""
        self.state = SwitchState(switch, since)
        logger.warning("member %s is switched %s%s", self._member, switch.name, f": {why}" if why else "")

"""The air: the flights that are under way, and which of them should have landed by now."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..executor import Flight
from ..types import Request

OVERDUE_FACTOR = 4.0
OVERDUE_SECONDS = 0.05
"""A flight that takes this factor of its expected time and these seconds more is taken to be stuck."""

TOGETHER_SECONDS = 0.005
"""Rows of a flight whose time is up within so long of each other are answered together."""


@dataclass(slots=True, eq=False)
class Airborne:
    """A flight in the air, and what the batcher expects of it."""

    flight: Flight
    overdue_at: float
    is_probe: bool
    """Whether it tries a member that is off; its row is nobody's."""
    is_stuck: bool = False
    _late_rows: set[int] = field(default_factory=set)
    """The rows, by id, that could not wait for the landing and have been answered."""

    def take_late(self, row: Request, now: float) -> list[Request]:
        """Take the rows that are to be answered before the landing: `row`, and those that are as late; each is taken once."""
        until = now + TOGETHER_SECONDS
        late = [other for other in self.flight.rows if other is row or (other.reply_by <= until and not other.is_answered)]
        rows = [other for other in late if id(other) not in self._late_rows]
        self._late_rows.update(map(id, rows))
        return rows


class Air:
    """The flights in the air. Not thread-safe: the batcher's lock guards it."""

    def __init__(self) -> None:
        """Begin with nothing in the air."""
        self._airborne: list[Airborne] = []

    def __bool__(self) -> bool:
        """Whether anything flies."""
        return bool(self._airborne)

    def __iter__(self) -> Iterator[Airborne]:
        """Give what flies, in the order in which it took off."""
        return iter(tuple(self._airborne))

    def take_off(self, flight: Flight, now: float, *, is_probe: bool = False) -> None:
        """Let a flight into the air."""
        overdue_at = now + OVERDUE_FACTOR * sum(flight.solo_seconds) + OVERDUE_SECONDS
        self._airborne.append(Airborne(flight, overdue_at, is_probe))

    def land(self, flight: Flight) -> None:
        """Let a flight out of the air."""
        self._airborne = [airborne for airborne in self._airborne if airborne.flight is not flight]

    def find(self, flight: Flight) -> Airborne:
        """Find a flight that is in the air."""
        return next(airborne for airborne in self._airborne if airborne.flight is flight)

    def find_carrying(self, row: Request) -> Airborne | None:
        """Find the flight that a row is on."""
        return next((airborne for airborne in self._airborne if row in airborne.flight.rows), None)

    @property
    def stuck(self) -> list[Flight]:
        """The flights that have been found stuck."""
        return [airborne.flight for airborne in self._airborne if airborne.is_stuck]

    def find_newly_stuck(self, now: float) -> list[Flight]:
        """Find the flights that are overdue and were not yet known to be stuck; from now on they are."""
        found = [airborne for airborne in self._airborne if now >= airborne.overdue_at and not airborne.is_stuck]
        for airborne in found:
            airborne.is_stuck = True
        return [airborne.flight for airborne in found]

    def seconds_to_overdue(self, now: float) -> float:
        """Say when the next flight may turn out to be stuck; infinity if none can."""
        return min((airborne.overdue_at - now for airborne in self._airborne if not airborne.is_stuck), default=math.inf)

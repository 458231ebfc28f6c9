"""The switchboard: every member's breaker, and what the breakers learn from flights."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from ..errors import MemberOff
from ..executor import Ensemble, Flight, Run
from ..settings import ServerSettings
from ..types import Policy
from .breaker import Breaker

SLOW_FACTOR = 4.0
"""A member may take so many times what it takes alone before it counts as behind: others compute beside it."""

OnSwitch = Callable[[], None]


class Switchboard:
    """Switches members off and on. Changed under the batcher's lock; what only reads may be called by any thread."""

    def __init__(self, ensemble: Ensemble, settings: ServerSettings, on_switch: OnSwitch) -> None:
        """Begin with every member on; `on_switch` is told of every change, on the thread that makes it."""
        self.breakers = tuple(Breaker(member.name, settings) for member in ensemble.members)
        self._members = ensemble.members
        # In a cascade the others may not be needed.
        self._needed = ensemble.first_crew({member.index: () for member in ensemble.members})
        self._stall_seconds = settings.breaker_stall_seconds
        self._on_switch = on_switch
        self._computing_since: dict[Run, float] = {}
        self._are_all_on = True

    # --- reading -------------------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> dict[str, bool]:
        """Whether each member is on, by name."""
        return {member.name: breaker.is_on for member, breaker in zip(self._members, self.breakers, strict=True)}

    def why_off(self, index: int) -> MemberOff | None:
        """Say why rows do not fly with a member; None if they do."""
        state = self.breakers[index].state
        return MemberOff(f"the member is switched off {state.reason}", member=self._members[index].name) if state.reason else None

    def can_answer(self, policy: Policy) -> bool:
        """Whether the members that are on are enough for `policy`, for rows with input for all of them."""
        if policy is Policy.REQUIRE_ALL:
            return all(breaker.is_on for breaker in self.breakers)
        able: set[int] = set()
        for member in self._members:  # feeders stand before those whom they feed
            if self.breakers[member.index].is_on and able.issuperset(member.feeders):
                able.add(member.index)
        return any(self._members[index].is_voter for index in able)

    def check(self, policy: Policy) -> None:
        """Raise MemberOff if no row can be answered under `policy`, before anything is done for it."""
        if self._are_all_on:
            return
        off = {index: error for index in range(len(self._members)) if (error := self.why_off(index))}
        if off and (not off.keys().isdisjoint(self._needed) if policy is Policy.REQUIRE_ALL else not self.can_answer(policy)):
            raise refusal(policy, off)

    # --- changing, under the batcher's lock ----------------------------------------------------------------------------------

    def set_by_hand(self, index: int, is_on: bool) -> None:
        """Switch a member as an operator wants it."""
        with self._telling():
            self.breakers[index].set_by_hand(is_on)

    def look_for_stalled(self, flights: Iterable[Flight], now: float) -> None:
        """Switch off the members that have computed in `flights` for too long; who waits for its turn is not to blame."""
        with self._telling():
            for run, alone, since in self._find_computing(flights, now):
                behind, breaker = now - since - SLOW_FACTOR * alone, self.breakers[run.member.index]
                if breaker.is_on and behind >= self._stall_seconds:
                    breaker.trip(f"its lane has been behind for {behind:.1f} s")

    def note_landing(self, flight: Flight, failures: Mapping[int, str], *, is_probe: bool, seconds: float) -> None:
        """Learn how members did in a flight that took so long; `failures` has a text for each to be judged, by index."""
        for run in flight.runs:
            self._computing_since.pop(run, None)
        with self._telling():
            for index, failure in failures.items():
                if not is_probe:
                    self.breakers[index].note_flight(failure)
                    continue
                # A probe that was stuck and came back in the end would be followed by rows that are.
                is_slow = seconds >= self._stall_seconds + SLOW_FACTOR * sum(flight.solo_seconds)
                self.breakers[index].note_probe(failure or (f"it took {seconds:.1f} s" if is_slow else ""))

    def _find_computing(self, flights: Iterable[Flight], now: float) -> Iterator[tuple[Run, float, float]]:
        """Find the runs that have begun and not ended: with what they take alone, and since when they are known to compute."""
        for flight in flights:
            for run, alone in zip(flight.runs, flight.solo_seconds, strict=True):
                began = flight.started if run.is_in_capture else run.started
                if began.is_done() and not run.done.is_done():
                    yield run, alone, self._computing_since.setdefault(run, began.done_at or now)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        before = [breaker.state for breaker in self.breakers]
        yield
        if before != [breaker.state for breaker in self.breakers]:
            self._are_all_on = all(breaker.is_on for breaker in self.breakers)
            self._on_switch()


def refusal(policy: Policy, off: Mapping[int, MemberOff]) -> MemberOff:
    """Make one error of the members, by index, without whom a row cannot be answered: the first, or all if any would have done."""
    if policy is Policy.REQUIRE_ALL or len(off) == 1:
        return next(iter(off.values()))
    causes = "; ".join(f"{error.member}: {error.text}" for error in off.values())
    return MemberOff(f"no member has an output for this row: {causes}")

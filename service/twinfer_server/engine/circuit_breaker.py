"""Circuit breakers: a member that keeps failing or stalls takes no part, is tried now and then, and takes part again.

A sliding window of the member's last batches decides, as in resilience4j's count-based breaker. A member whose breaker is open is
tried on made-up input, so that no caller's request is the one to find out.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from ..errors import MemberOff, TwinferError
from ..executor import Batch, Ensemble, MemberRun, find_refusal
from ..settings import ServerSettings
from ..types import Policy

logger = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 60.0
SLOW_FACTOR = 4.0
"""A member may take so many times its solo latency before it counts as behind: others compute beside it."""


class BreakerState(IntEnum):
    """Whether a member takes part in batches, with the numbers of `twinfer.v1.BreakerState`."""

    CLOSED = 1
    OPEN = 2
    DISABLED = 3


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """A breaker's state; `reason` says why it is not closed, and since when."""

    state: BreakerState = BreakerState.CLOSED
    reason: str = ""


class CircuitBreaker:
    """One member's breaker. Changed under the scheduler's lock; `reading` is replaced as a whole, so any thread may read it."""

    def __init__(self, member: str, settings: ServerSettings) -> None:
        """Begin closed."""
        self.reading = BreakerReading()
        self.is_in_trial = False
        self.is_in_doubt = False
        """Whether it gave a whole batch nothing finite: a trial is to show whether that was the requests' doing or its own."""
        self.times_opened = 0
        self._member = member
        self._window: deque[bool] = deque(maxlen=settings.breaker_window)
        self._failures = settings.breaker_failures
        self._first_retry_seconds = settings.breaker_retry_seconds
        self._retry_seconds = self._first_retry_seconds
        """How long before the next trial; it grows with each until the member has got through a whole window of batches."""
        self._retry_at = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether the member takes part."""
        return self.reading.state is BreakerState.CLOSED

    def note_batch(self, failure: str) -> None:
        """Learn how the member did in a batch of callers' requests; `failure` says what went wrong, and is empty if nothing did."""
        self._window.append(bool(failure))
        failures = sum(self._window)
        if not self.is_closed:
            return
        if failure and self._failures and failures >= self._failures:
            self.open(f"it failed in {failures} of its last {len(self._window)} batches, the last time because {failure}")
        elif len(self._window) == self._window.maxlen:
            self._retry_seconds = self._first_retry_seconds

    def note_trial(self, failure: str) -> None:
        """Learn how a trial ended; `failure` is empty if it went well."""
        was_in_doubt, self.is_in_trial, self.is_in_doubt = self.is_in_doubt, False, False
        if was_in_doubt and self.is_closed and failure:
            self.note_batch(failure)
            return
        if self.reading.state is not BreakerState.OPEN:
            return
        if failure:
            logger.info("member %s stays off, for %.1f s: the trial failed: %s", self._member, self._plan_retry(), failure)
        else:
            self._set(BreakerState.CLOSED, "")

    def open(self, why: str) -> None:
        """Take the member out until a trial goes well."""
        self.times_opened += 1
        self._plan_retry()
        self._set(BreakerState.OPEN, why)

    def set_by_hand(self, is_enabled: bool) -> None:
        """Enable or disable the member as an operator wants it; enabled, also again, it has nothing held against it."""
        state = BreakerState.CLOSED if is_enabled else BreakerState.DISABLED
        self.is_in_doubt = False
        if is_enabled:
            self._retry_seconds = self._first_retry_seconds
            self._window.clear()
        if self.reading.state is not state:
            self._set(state, "" if is_enabled else "an operator has disabled it")

    def seconds_to_trial(self, now: float) -> float | None:
        """Return in how many seconds the member is to be tried: 0 is now, as where it is in doubt; None if not, or in a trial."""
        if self.is_in_trial or not ((self.is_closed and self.is_in_doubt) or self.reading.state is BreakerState.OPEN):
            return None
        return 0.0 if self.is_closed else max(0.0, self._retry_at - now)

    def _plan_retry(self) -> float:
        """Plan the next trial, and the one after it later; return the seconds until then."""
        seconds: float
        seconds, self._retry_seconds = self._retry_seconds, min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
        self._retry_at = time.monotonic() + seconds
        return seconds

    def _set(self, state: BreakerState, why: str) -> None:
        if state is BreakerState.CLOSED:
            self._window.clear()
        since = f"since {datetime.now(UTC).isoformat(timespec='seconds')}: {why}" if why else ""
        self.reading = BreakerReading(state, since)
        logger.warning("the breaker of member %s is %s%s", self._member, state.name, f": {why}" if why else "")


class CircuitBreakers:
    """All members' breakers. Changed under the scheduler's lock; what only reads may be called by any thread."""

    def __init__(self, ensemble: Ensemble, settings: ServerSettings, on_change: Callable[[], None]) -> None:
        """Begin with every breaker closed; `on_change` is told of every change, on the thread that makes it."""
        self.breakers = tuple(CircuitBreaker(member.name, settings) for member in ensemble.members)
        self._ensemble = ensemble
        # In a cascade the others may not be needed.
        self._first_asked = ensemble.first_members({member.index: () for member in ensemble.members})
        self._stall_seconds = settings.breaker_stall_seconds
        self._on_change = on_change
        self._computing_since: dict[MemberRun, float] = {}
        self._are_all_closed = True

    # --- reading: any thread --------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> dict[str, bool]:
        """Whether each member takes part, by name."""
        return {member.name: breaker.is_closed for member, breaker in zip(self._ensemble.members, self.breakers, strict=True)}

    def why_off(self, index: int) -> MemberOff | None:
        """Return why a member takes no part; None if it does."""
        reason = self.breakers[index].reading.reason
        return MemberOff(f"the member is off {reason}", member=self._ensemble.members[index].name) if reason else None

    def can_answer(self, policy: Policy) -> bool:
        """Whether the members that are on are enough for `policy`, for requests with input for all of them."""
        everyone = range(len(self.breakers))
        return self._are_all_closed or find_refusal(self._ensemble.fusion, policy, everyone, self._find_lost(everyone)) is None

    def check(self, policy: Policy) -> None:
        """Raise MemberOff if no request can be answered under `policy`, before anything is done for it."""
        if self._are_all_closed:
            return
        everyone = range(len(self.breakers))
        # Under BEST_EFFORT a cascade's other members answer in the first one's place.
        asked = self._first_asked if policy is Policy.REQUIRE_ALL else everyone
        refusal = find_refusal(self._ensemble.fusion, policy, asked, self._find_lost(asked))
        if refusal is not None:
            raise refusal if isinstance(refusal, MemberOff) else MemberOff(refusal.text, member=refusal.member)

    def _find_lost(self, asked: Iterable[int]) -> dict[int, TwinferError]:
        return spread_loss(self._ensemble, asked, lambda index: self.why_off(index))

    # --- changing: under the scheduler's lock ---------------------------------------------------------------------------------

    def set_by_hand(self, index: int, is_enabled: bool) -> None:
        """Enable or disable a member as an operator wants it."""
        with self._telling():
            self.breakers[index].set_by_hand(is_enabled)

    def look_for_stalled(self, batches: Iterable[Batch], now: float) -> None:
        """Open the breakers of members that have computed for too long; one that only waits for its turn is not to blame."""
        with self._telling():
            for batch in batches:
                for run in batch.runs:
                    if not run.started.is_done() or run.done.is_done():
                        continue
                    since = self._computing_since.setdefault(run, run.started.done_at or now)
                    behind, breaker = now - since - SLOW_FACTOR * run.solo_seconds, self.breakers[run.member.index]
                    if breaker.is_closed and behind >= self._stall_seconds:
                        breaker.open(f"its stream has been behind for {behind:.1f} s")

    def note_batch(self, batch: Batch, failures: Mapping[int, str], *, is_trial: bool, seconds: float) -> None:
        """Learn how members did in a batch that took so long; `failures` has a text for each to be judged, by index."""
        for run in batch.runs:
            self._computing_since.pop(run, None)
        # A trial that was stuck and came back in the end would be followed by batches that are.
        is_slow = seconds >= self._stall_seconds + SLOW_FACTOR * sum(run.solo_seconds for run in batch.runs)
        with self._telling():
            if is_trial:
                [run] = batch.runs
                failure = failures.get(run.member.index, "it raised, and the next time did not")
                self.breakers[run.member.index].note_trial(failure or (f"it took {seconds:.1f} s" if is_slow else ""))
                return
            for index, failure in failures.items():
                if failure and not batch.run_of[index].fault:
                    self.breakers[index].is_in_doubt = True
                else:
                    self.breakers[index].note_batch(failure)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        before = [breaker.reading for breaker in self.breakers]
        yield
        if before != [breaker.reading for breaker in self.breakers]:
            self._are_all_closed = all(breaker.is_closed for breaker in self.breakers)
            self._on_change()


def spread_loss(
    ensemble: Ensemble, asked: Iterable[int], why: Callable[[int], TwinferError | None]
) -> dict[int, TwinferError]:  # fmt: skip
    """Say, by member index, which of the members `asked` take no part: `why` says so, or an upstream member of theirs does not."""
    lost: dict[int, TwinferError] = {}
    for index in sorted(asked):  # upstream members stand first
        member = ensemble.members[index]
        upstream = next((lost[other] for other in member.upstream if other in lost), None)
        if upstream is not None:
            lost[index] = type(upstream)(
                f"it takes the output of the member {upstream.member}: {upstream.text}", member=member.name
            )
            continue
        error = why(index)
        if error is not None:
            lost[index] = error
    return lost

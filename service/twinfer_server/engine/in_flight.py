"""What is in flight: the members' staging buffers, the batches under way and when they should end. For the scheduler's lock."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..executor import Batch, Ensemble, Member, MemberRun
from ..executor.buffers import StagingBuffers
from ..types import Request

OVERDUE_FACTOR = 4.0
OVERDUE_SECONDS = 0.25
"""A batch or a run is overdue when it has taken this factor of its expected time, and these seconds unless a caller cannot wait."""
BEHIND_FACTOR = 4.0
"""A stream that is overdue is expected to stay so for some times as long as it has been."""
LATE_TOGETHER_SECONDS = 0.005
"""Requests of a batch whose time is up within so long of each other are answered together."""


@dataclass(slots=True, eq=False)
class InFlightBatch:
    """A batch under way, and what the scheduler knows of it."""

    batch: Batch
    overdue_at: float
    is_trial: bool
    """Whether it tries a member whose breaker is open; its request is made up."""
    is_overdue: bool = False


class MemberLoad:
    """One member's staging buffers, and the runs under way that hold them."""

    def __init__(self, member: Member) -> None:
        """Begin with all buffers free."""
        self._free = deque(member.buffers)
        self._runs: deque[tuple[MemberRun, float, float]] = deque()
        """Runs, when they should end, and how long they should take."""

    @property
    def has_buffers(self) -> bool:
        """Whether another run could be staged."""
        return bool(self._free)

    def take_buffers(self) -> StagingBuffers:
        """Take a free set of buffers."""
        return self._free.popleft()

    def give_back(self, buffers: StagingBuffers) -> None:
        """Take back buffers that no run came to hold."""
        self._free.append(buffers)

    def add(self, run: MemberRun, now: float) -> None:
        """Note that a run is about to be launched."""
        begins = max(now, self._runs[-1][1]) if self._runs else now
        self._runs.append((run, begins + run.solo_seconds, run.solo_seconds))

    def release(self, run: MemberRun) -> None:
        """Take the buffers of a run back."""
        self._runs = deque(entry for entry in self._runs if entry[0] is not run)
        self._free.append(run.buffers)

    def wait_seconds(self, now: float) -> float:
        """Estimate how long a run launched now would wait for the stream, if that is on time; 0 once it is behind."""
        # A run may be done long before its batch is complete: it no longer keeps the stream.
        last = next((entry for entry in reversed(self._runs) if not entry[0].done.is_done()), None)
        return 0.0 if last is None else max(0.0, last[1] - now)

    def behind_seconds(self, now: float) -> float:
        """Return for how long the stream has been behind its time; 0 if it is not."""
        first = next((entry for entry in self._runs if not entry[0].done.is_done()), None)
        return 0.0 if first is None else max(0.0, now - first[1])

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way on the stream."""
        return any(not run.done.is_done() for run, _, _ in self._runs)

    def is_late_for(self, left_seconds: float, now: float) -> bool:
        """Whether the stream has been behind for so long that a request with so much time left does better without the member.

        A short hiccup costs nothing, and no request waits until its last moment.
        """
        behind = self.behind_seconds(now)
        if not behind:
            return False
        expected = max(seconds for _, _, seconds in self._runs)
        patience = min(max(OVERDUE_FACTOR * expected, OVERDUE_SECONDS), left_seconds / 2)
        return behind >= patience and BEHIND_FACTOR * behind >= left_seconds


class InFlight:
    """The batches under way, in the order of their launch, and the members' loads, by index."""

    def __init__(self, ensemble: Ensemble) -> None:
        """Begin with nothing under way."""
        self.loads = [MemberLoad(member) for member in ensemble.members]
        self._names = [member.name for member in ensemble.members]
        self._batches: list[InFlightBatch] = []

    def __bool__(self) -> bool:
        """Whether any batch is under way."""
        return bool(self._batches)

    def __iter__(self) -> Iterator[InFlightBatch]:
        """Iterate over what is under way now."""
        return iter(tuple(self._batches))

    def add(self, batch: Batch, now: float, *, is_trial: bool) -> None:
        """Note that a batch is about to be launched."""
        for run in batch.runs:
            self.loads[run.member.index].add(run, now)
        tightest = min(request.reply_by for request in batch.requests) - now
        expected = sum(run.solo_seconds for run in batch.runs)
        # Early enough for another member to begin and to end before the first request's time is up.
        overdue = min(OVERDUE_FACTOR * expected + OVERDUE_SECONDS, max(1.5 * expected, tightest / 2))
        self._batches.append(InFlightBatch(batch, now + overdue, is_trial))

    def remove(self, batch: Batch) -> InFlightBatch | None:
        """Take a batch that has ended out, with the buffers that it still holds; None if that has been done already."""
        found = next((entry for entry in self._batches if entry.batch is batch), None)
        if found is not None:
            self._batches.remove(found)
            for run in batch.runs:
                if not run.is_released:
                    run.is_released = True
                    self.loads[run.member.index].release(run)
        return found

    def release_done_runs(self) -> None:
        """Take back the buffers of members that are done in overdue batches: a healthy member must not wait for a stuck one."""
        for entry in self._batches:
            if entry.is_overdue:
                for run in entry.batch.keep_done_outputs():
                    self.loads[run.member.index].release(run)

    @property
    def has_overdue(self) -> bool:
        """Whether a batch is overdue."""
        return any(entry.is_overdue for entry in self._batches)

    def find_newly_overdue(self, now: float) -> list[Batch]:
        """Find the batches that are overdue and were not yet known to be; from now on they are."""
        found = [entry for entry in self._batches if now >= entry.overdue_at and not entry.is_overdue]
        for entry in found:
            entry.is_overdue = True
        return [entry.batch for entry in found]

    def find(self, request: Request) -> Batch | None:
        """Find the batch that a request is in."""
        return next((entry.batch for entry in self if entry.batch.holds(request)), None)

    def behind_seconds(self, now: float) -> Mapping[str, float]:
        """Return for how long each member's stream has been behind its time, by name; 0 if it is not."""
        return {name: load.behind_seconds(now) for name, load in zip(self._names, self.loads, strict=True)}

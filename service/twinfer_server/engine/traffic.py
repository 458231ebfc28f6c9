"""Traffic: what is in the air on one member's lane, and so how long a new run would wait for it."""

from collections import deque
from typing import NamedTuple

from ..executor import Member, Run, Slot

BEHIND_FACTOR = 4.0


class _Airborne(NamedTuple):
    run: Run
    expected_end: float


class LaneTraffic:
    """One member's slots and the runs that hold them. Not thread-safe: the batcher's lock guards it."""

    def __init__(self, member: Member) -> None:
        """Begin with every slot free."""
        self._free = deque(member.slots)
        self._air: deque[_Airborne] = deque()

    @property
    def has_slot(self) -> bool:
        """Whether a new run could be staged."""
        return bool(self._free)

    def wait_seconds(self, now: float) -> float:
        """Estimate how long a run launched `now` would wait for the lane.

        A lane that is behind its time is expected to stay so for some times as long: a short hiccup costs little, and the longer
        it stands, the fewer rows wait for it; and none of them until its last moment.
        """
        # A run may be done long before its flight has landed: it no longer keeps the lane.
        last = next((airborne for airborne in reversed(self._air) if not airborne.run.done.is_done()), None)
        if last is None:
            return 0.0
        left = last.expected_end - now
        return left if left >= 0 else -left * BEHIND_FACTOR

    @property
    def free_numbers(self) -> set[int]:
        """The numbers of the free slots."""
        return {slot.number for slot in self._free}

    def take_slot(self, number: int | None) -> Slot:
        """Take the free slot of that number, or any."""
        slot = next((slot for slot in self._free if slot.number == number), self._free[0])
        self._free.remove(slot)
        return slot

    def take_off(self, run: Run, now: float, solo_seconds: float) -> None:
        """Note that `run` is about to be launched."""
        begins = max(now, self._air[-1].expected_end) if self._air else now
        self._air.append(_Airborne(run, begins + solo_seconds))

    def free(self, run: Run) -> None:
        """Free the slot that `run` held on this lane, unless that has been done already."""
        for airborne in self._air:
            if airborne.run is run:
                self._air.remove(airborne)
                self._free.append(run.slot)
                return

    def standing_since(self, now: float) -> float:
        """Say for how long the lane has been behind its time, in seconds; 0 if it is not."""
        unfinished = [airborne for airborne in self._air if not airborne.run.done.is_done()]
        return max(0.0, now - unfinished[0].expected_end) if unfinished else 0.0

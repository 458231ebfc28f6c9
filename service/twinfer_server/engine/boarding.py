"""Boarding: which of the rows that wait fly together now, with which members, and in which slots."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import MemberLate, MemberOff, TwinferError
from ..executor import Bucket, Ensemble, Flight, Run, make_blank_row, pending_members
from ..types import Policy, Request
from .queue import RowQueue
from .switchboard import Switchboard
from .traffic import LaneTraffic

PATIENCE_SECONDS = 0.02
"""A row that has waited for a busy lane for so long has the lanes it needs kept free for it."""


@dataclass(slots=True)
class _Manifest:
    """Who boards, and who must stay; `left_out` says, by (row number, member index), why a member flies without a row."""

    rows: list[Request] = field(default_factory=list)
    left_out: dict[tuple[int, int], TwinferError] = field(default_factory=dict)
    staying: list[Request] = field(default_factory=list)
    refused: list[tuple[Request, dict[int, MemberOff]]] = field(default_factory=list)


class Boarding:
    """The rows that wait, and the traffic on the lanes that they wait for. Not thread-safe: the batcher's lock guards it."""

    def __init__(self, ensemble: Ensemble, switchboard: Switchboard) -> None:
        """Begin with no rows, and every lane free."""
        self.queue = RowQueue(ensemble.spec.batching.max_batch_size, _find_full_seconds(ensemble))
        self.refused: list[tuple[Request, dict[int, MemberOff]]] = []
        """Rows that cannot fly because of members that are off, by index; for the batcher to answer."""
        self._switchboard = switchboard
        self.lead_seconds = 0.0
        """How long before a lane gets free the next flight is to be launched."""
        self._ensemble = ensemble
        self._traffic = [LaneTraffic(member) for member in ensemble.members]
        self._max_rows = ensemble.spec.batching.max_batch_size
        self._max_delay_seconds = ensemble.spec.batching.max_delay_ms / 1000
        self._held_until = 0.0
        self._numbers = itertools.count(1)
        self._least_seconds = [self._find_least_seconds(index) for index in range(len(ensemble.members))]

    def board(self, now: float, is_air_empty: bool, is_beside_stuck: bool) -> Flight | None:
        """Take as many rows as fit and can fly now, and make their flight; the others go on waiting.

        Beside a flight that is stuck only lanes of their own keep the members apart.
        """
        manifest = self._choose(now)
        rows = manifest.rows
        self.refused += manifest.refused
        if rows and self._max_delay_seconds and len(rows) < self._max_rows:
            self._held_until = min(row.ready_at for row in rows) + self._max_delay_seconds
            if is_air_empty and now < self._held_until:
                manifest.staying += rows
                rows = []
        for row in manifest.staying:
            self.queue.put(row)
        return self._take_off(rows, manifest.left_out, now, "streams" if is_beside_stuck else None) if rows else None

    def board_probe(self, now: float) -> Flight | None:
        """Make a flight of made-up input for a member that is to be tried; None if there is none, or its lane is not free."""
        for index, breaker in enumerate(self._switchboard.breakers):
            traffic = self._traffic[index]
            if breaker.seconds_to_probe(now) == 0 and traffic.has_slot and traffic.wait_seconds(now) == 0:
                breaker.is_probing = True
                # On a lane of its own: if it gets stuck it holds nobody else.
                return self._take_off([make_blank_row(self._ensemble, index)], {}, now, "streams")
        return None

    def seconds_to_next_probe(self, now: float) -> float | None:
        """Say when a member is to be tried; None if none is."""
        waits = [breaker.seconds_to_probe(now) for breaker in self._switchboard.breakers]
        return min((max(wait, 0.05) for wait in waits if wait is not None), default=None)

    def seconds_to_next_look(self, now: float) -> float:
        """Say when boarding may go differently although nobody calls: a lane gets free, or a delay is over."""
        looks = [traffic.wait_seconds(now) - self.lead_seconds for traffic in self._traffic if traffic.has_slot]
        looks = [look for look in looks if look > 0] or [0.05]
        held = self._held_until - now
        return max(0.0005, min(*looks, held if held > 0 else 1.0))

    def free(self, run: Run) -> None:
        """Free the slot that `run` held, unless that has been done already."""
        self._traffic[run.member.index].free(run)

    def standing_seconds(self, now: float) -> dict[str, float]:
        """Say for how long each member's lane has been behind its time, by member name."""
        names = [member.name for member in self._ensemble.members]
        return {name: traffic.standing_since(now) for name, traffic in zip(names, self._traffic, strict=True)}

    def _choose(self, now: float) -> _Manifest:
        waits = [traffic.wait_seconds(now) for traffic in self._traffic]
        is_ready = [traffic.has_slot and wait <= self.lead_seconds for traffic, wait in zip(self._traffic, waits, strict=True)]
        soonest: list[float] = []
        for member in self._ensemble.members:
            index = member.index
            wait = max([0.0 if is_ready[index] else waits[index], *(soonest[feeder] for feeder in member.feeders)])
            soonest.append(wait + self._least_seconds[index])
        busy = {index for index, is_free in enumerate(is_ready) if not is_free}  # or kept free for somebody
        seconds_of: dict[tuple[int, ...], float] = {}
        room = [member.max_samples for member in self._ensemble.members]
        manifest = _Manifest()
        for row in self.queue.take_in_order():
            if row.crew not in seconds_of:
                seconds_of[row.crew] = self._find_seconds(row.crew, soonest)
            # For nearly every row that says it all.
            missing = self._find_missing(row, soonest, now) if now + seconds_of[row.crew] >= row.reply_by else {}
            if len(missing) == len(row.crew) and pending_members(row):  # a cascade's first: the others are asked in its place
                row.crew = (*row.crew, *pending_members(row))
                missing = self._find_missing(row, soonest, now)
            off = {index: error for index, error in missing.items() if isinstance(error, MemberOff)}
            if off and (row.policy is Policy.REQUIRE_ALL or len(off) == len(row.crew)):
                manifest.refused.append((row, off))
                continue
            late = [index for index in missing if index not in off]
            flying = tuple(index for index in row.crew if index not in missing) if missing else row.crew
            if row.policy is Policy.REQUIRE_ALL and late and all(is_ready[index] for index in late):
                continue  # it cannot make it: its timer is about to fail it, and work for it would be wasted
            if not flying and all(is_ready):
                continue
            if (row.policy is Policy.REQUIRE_ALL and late) or not flying or not busy.isdisjoint(flying):
                manifest.staying.append(row)
                row.blocked_at = row.blocked_at or now
                if now - row.ready_at > PATIENCE_SECONDS:
                    busy.update(flying)  # else rows that need only one of its lanes could keep it waiting for ever
                continue
            for index in flying:
                room[index] -= len(row.samples[index][0])
            if min(room) < 0:  # whoever comes next waits behind it: else small rows would pass a large one for ever
                manifest.staying.append(row)
                break
            manifest.left_out.update({(len(manifest.rows), index): error for index, error in missing.items()})
            manifest.rows.append(row)
            if len(manifest.rows) == self._max_rows:
                break
        return manifest

    def _find_least_seconds(self, index: int) -> float:
        """Find what the member takes for one row, at the least."""
        times = self._ensemble.times
        if times is None:
            return 0.0
        smallest = Bucket(1, self._ensemble.members[index].token_sizes[0])
        return min(times.solo_seconds(execution, index, smallest) for execution in self._ensemble.plans)

    def _take_off(
        self, rows: list[Request], left_out: dict[tuple[int, int], TwinferError], now: float, execution: str | None
    ) -> Flight:
        flying = {index for n, row in enumerate(rows) for index in row.crew if (n, index) not in left_out}
        # Slots of one number where there are some: a captured flight has its own in each lane.
        common = set.intersection(*(self._traffic[index].free_numbers for index in flying))
        number = min(common, default=None)
        slots = {index: self._traffic[index].take_slot(number) for index in sorted(flying)}
        flight = self._ensemble.board(rows, slots, left_out, execution)
        for run, seconds in zip(flight.runs, flight.solo_seconds, strict=True):
            self._traffic[run.member.index].take_off(run, now, seconds)
        flight.number, flight.boarded_at = next(self._numbers), now
        self.queue.block(now)
        return flight

    def _find_seconds(self, crew: Sequence[int], soonest: Sequence[float]) -> float:
        """Find in how many seconds all of a crew could have answered; infinity if one is off."""
        if any(self._switchboard.why_off(index) is not None for index in crew):
            return math.inf
        return max((soonest[index] for index in crew), default=math.inf)

    def _find_missing(self, row: Request, soonest: Sequence[float], now: float) -> dict[int, TwinferError]:
        """Say, by member index, who cannot fly for the row and why: switched off, too late, or fed by somebody who is."""
        missing: dict[int, TwinferError] = {}
        for index in row.crew:
            member, off = self._ensemble.members[index], self._switchboard.why_off(index)
            upstream = next((missing[feeder] for feeder in member.feeders if feeder in missing), None)
            if upstream is not None:
                missing[index] = type(upstream)(f"it is fed by the member {upstream.member}: {upstream.text}", member=member.name)
            elif off is not None:
                missing[index] = off
            elif now + soonest[index] >= row.reply_by:  # even if nothing else came between
                text = f"the member would have answered in about {soonest[index]:.3f} s, later than the row could wait"
                missing[index] = MemberLate(text, member=member.name)
        return missing


def _find_full_seconds(ensemble: Ensemble) -> float:
    """Find what a full flight takes, at the most: its members one after the other."""
    times = ensemble.times
    if times is None:
        return 0.0
    fullest = [Bucket(member.max_samples, member.token_sizes[-1]) for member in ensemble.members]
    return sum(times.solo_seconds("serial", index, bucket) for index, bucket in enumerate(fullest))

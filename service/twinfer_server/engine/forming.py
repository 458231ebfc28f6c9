"""Forming batches: which of the requests that wait are computed together now, by which members, in which buffers.

Everything here is guarded by the scheduler's lock, and nothing computes.
"""

import itertools
import logging
from dataclasses import dataclass, field

from ..device import Execution
from ..errors import InternalError, MemberLate, MemberOff, TwinferError
from ..executor import Batch, Ensemble, make_synthetic_request
from ..types import Policy, Request
from .circuit_breaker import CircuitBreakers, spread_loss
from .completion import refuse
from .in_flight import InFlight
from .queue import RequestQueue

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.02
"""A request that has waited for a busy stream for so long has the streams that it needs kept free for it."""
BUSY_LOOK_SECONDS = 0.005
"""How soon to look again at a stream that is behind its time."""


@dataclass(slots=True)
class Decision:
    """Which requests are taken, which wait on, and which end now: with an error, or None where earlier batches suffice."""

    taken: list[Request] = field(default_factory=list)
    excluded: dict[tuple[int, int], TwinferError] = field(default_factory=dict)
    waiting: list[Request] = field(default_factory=list)
    ended: list[tuple[Request, TwinferError | None, dict[int, TwinferError]]] = field(default_factory=list)


class BatchFormer:
    """The requests that wait, and the decision which of them form the next batch."""

    def __init__(self, ensemble: Ensemble, breakers: CircuitBreakers, in_flight: InFlight) -> None:
        """Begin with no requests."""
        latencies = ensemble.latencies
        assert latencies is not None, "the ensemble is not warm"
        indices = range(len(ensemble.members))
        self.queue = RequestQueue(ensemble.spec.batching.max_batch_size, sum(map(latencies.most_seconds, indices)))
        self.lead_seconds = 0.0
        """How long before a stream gets free the next batch is to be launched."""
        self._ensemble = ensemble
        self._breakers = breakers
        self._in_flight = in_flight
        self._max_batch_size = ensemble.spec.batching.max_batch_size
        self._chain_seconds: list[float] = []
        """The least that each member takes behind its upstream members, which stand before it."""
        for member in ensemble.members:
            upstream = max((self._chain_seconds[other] for other in member.upstream), default=0.0)
            self._chain_seconds.append(latencies.least_seconds(member.index) + upstream)
        self._numbers = itertools.count(1)

    def form(self, now: float) -> tuple[Batch | None, Decision]:
        """Take as many requests as fit and can be computed now, and form their batch; the others go on waiting."""
        self._in_flight.release_done_runs()
        decision = self._decide(now)
        for request in decision.waiting:
            self.queue.put(request)
        self.queue.note_taken(decision.taken)
        try:
            return self._make(decision, now) if decision.taken else None, decision
        except Exception:  # a defect; it costs these requests, and no buffers
            logger.exception("forming a batch of %d requests failed", len(decision.taken))
            decision.ended += [(request, InternalError("no batch could be formed"), {}) for request in decision.taken]
            return None, decision

    def form_trial(self, now: float) -> Batch | None:
        """Form a batch of made-up input for a member that is to be tried; None if there is none, or its stream is not free."""
        for index, breaker in enumerate(self._breakers.breakers):
            load = self._in_flight.loads[index]
            is_free = load.has_buffers and not (load.is_busy and not breaker.is_closed)  # behind a stuck run no trial ends
            if breaker.seconds_to_trial(now) == 0 and is_free:
                member = self._ensemble.members[index]
                request = make_synthetic_request({index: member.example(0, member.token_sizes[0])})
                batch = self._make(Decision(taken=[request]), now, is_trial=True)
                breaker.is_in_trial = True
                return batch
        return None

    def seconds_to_next_look(self, now: float) -> float | None:
        """Return when the decision may be another one although nothing comes or completes; None if nothing waits for that."""
        looks = [seconds for breaker in self._breakers.breakers if (seconds := breaker.seconds_to_trial(now)) is not None]
        looks = [max(look, 0.05) for look in looks]
        if self.queue:
            for load in self._in_flight.loads:
                wait = load.wait_seconds(now) - self.lead_seconds
                looks.append(wait if wait > 0 else BUSY_LOOK_SECONDS if load.is_busy else 0.05)
        return max(0.0005, min(looks)) if looks else None

    def _decide(self, now: float) -> Decision:
        """Go through the queue in order."""
        loads = self._in_flight.loads
        busy = {index for index, load in enumerate(loads) if self._is_busy(index, now)}
        room = [member.max_samples for member in self._ensemble.members]
        decision = Decision()
        for request in self.queue.take_in_order():
            lost = self._find_lost(request, now)
            if len(lost) == len(request.members) and request.pending_members():
                request.members = (
                    *request.members,
                    *request.pending_members(),
                )  # a cascade's others are asked in its first one's place
                lost = self._find_lost(request, now)
            if lost and self._ends(request, lost, now, decision):
                continue
            members = tuple(index for index in request.members if index not in lost) if lost else request.members
            if not members or not busy.isdisjoint(members):
                decision.waiting.append(request)
                request.blocked_at = request.blocked_at or now
                if now - request.ready_at > PATIENCE_SECONDS:
                    busy.update(members)  # else requests that need only one of its streams could keep it waiting for ever
                continue
            samples = [(index, len(request.samples[index][0])) for index in members]
            if any(
                room[index] < count for index, count in samples
            ):  # later requests wait behind it: else small ones would pass for ever
                decision.waiting.append(request)
                break
            for index, count in samples:
                room[index] -= count
            decision.excluded.update({(len(decision.taken), index): error for index, error in lost.items()})
            decision.taken.append(request)
            if len(decision.taken) == self._max_batch_size:
                break
        return decision

    def _is_busy(self, index: int, now: float) -> bool:
        load = self._in_flight.loads[index]
        if not load.has_buffers or load.behind_seconds(now):
            return True
        return load.wait_seconds(now) > self.lead_seconds

    def _find_lost(self, request: Request, now: float) -> dict[int, TwinferError]:
        """Say, by member index, which members cannot take part for a request and why: off, too late, or behind such a one."""
        if all(self._is_on_time(index, request.reply_by - now, now) for index in request.members):
            return {}  # for nearly every request
        lost = spread_loss(self._ensemble, request.members, lambda index: self._why_lost(request, index, now))
        if request.policy is Policy.REQUIRE_ALL and any(isinstance(error, MemberOff) for error in lost.values()):
            return lost
        # Where a stream is behind it is what kept the request waiting until no member can make it.
        behind = {index: error for index, error in lost.items() if self._in_flight.loads[index].behind_seconds(now)}
        return behind if request.policy is Policy.REQUIRE_ALL and behind else lost

    def _is_on_time(self, index: int, left_seconds: float, now: float) -> bool:
        """Whether a member is certain to take part for a request with so much time left."""
        load = self._in_flight.loads[index]
        return (
            not self._breakers.breakers[index].reading.reason
            and load.wait_seconds(now) + self._chain_seconds[index] < left_seconds
            and not load.is_late_for(left_seconds, now)
        )

    def _why_lost(self, request: Request, index: int, now: float) -> TwinferError | None:
        off = self._breakers.why_off(index)
        if off is not None:
            return off
        load, left, least = self._in_flight.loads[index], request.reply_by - now, self._chain_seconds[index]
        if least >= left and load.behind_seconds(now):
            return self._late(index, f"has a stream that has been behind for {load.behind_seconds(now):.3f} s")
        if least >= left:
            return self._late(index, f"takes at least {least:.3f} s, longer than the request can wait")
        if request.policy is Policy.REQUIRE_ALL:
            return None  # it waits for its members as long as there is a chance
        if load.wait_seconds(now) + least >= left:
            return self._late(
                index, f"would have answered in about {load.wait_seconds(now) + least:.3f} s, too late for the request"
            )
        if load.is_late_for(left, now):
            return self._late(index, f"has a stream that has been behind for {load.behind_seconds(now):.3f} s")
        return None

    def _late(self, index: int, text: str) -> MemberLate:
        return MemberLate(f"the member {text}", member=self._ensemble.members[index].name)

    def _ends(self, request: Request, lost: dict[int, TwinferError], now: float, decision: Decision) -> bool:
        """Whether a request ends now, without a batch; what cannot make it fails at once, not at its deadline."""
        if request.policy is Policy.BEST_EFFORT and len(lost) == len(request.members):
            # All may be off, or hopeless; but a stream that is merely behind or busy may yet come in time.
            left = request.reply_by - now
            if any(isinstance(error, MemberLate) and self._chain_seconds[index] < left for index, error in lost.items()):
                return False
        refusal = refuse(self._ensemble, request, lost)
        if refusal is None and len(lost) < len(request.members):
            return False
        decision.ended.append((request, refusal, lost))
        return True

    def _make(self, decision: Decision, now: float, *, is_trial: bool = False) -> Batch:
        """Take buffers and make the batch; they are given back if that raises."""
        loads, taken = self._in_flight.loads, decision.taken
        asked = {index for n, request in enumerate(taken) for index in request.members if (n, index) not in decision.excluded}
        buffers = {index: loads[index].take_buffers() for index in sorted(asked)}
        # Beside an overdue batch, and for a trial, only streams of their own keep the members apart.
        execution: Execution | None = "streams" if is_trial or self._in_flight.has_overdue else None
        try:
            batch = self._ensemble.form_batch(taken, buffers, decision.excluded, execution)
        except Exception:
            for index, held in buffers.items():
                loads[index].give_back(held)
            raise
        batch.number, batch.scheduled_at = next(self._numbers), now
        self._in_flight.add(batch, now, is_trial=is_trial)
        self.queue.mark_blocked(now)
        return batch

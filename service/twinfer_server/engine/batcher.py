"""The batcher: decides which rows fly together, and has the threads that launch flights and wait for them.

One launch thread at a time queues device work, so stream order is decided in one place. When the lanes are idle it takes whatever
waits, even a single row; while a flight computes, rows collect until that flight is about to land. On a CPU the serial plan
computes on the launch thread itself; if a member gets stuck there, another thread takes over the launching.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from ..ensemble import Ensemble, Flight, answer_rows, fusion_failure
from ..errors import InternalError, MemberLate, TwinferError
from ..rows import Answer, Policy, Row
from .queue import RowQueue
from .record import OnFlight, record_flight
from .traffic import LaneTraffic
from .workers import Workers

logger = logging.getLogger(__name__)

OVERDUE_FACTOR = 4.0
OVERDUE_SECONDS = 0.05
"""A flight that takes this factor of its expected time and these seconds more is taken to be stuck."""

TOGETHER_SECONDS = 0.005
"""Rows of a flight whose time is up within so long of each other are answered together."""

LOOK_SECONDS = 0.25
"""How often a waiting row looks for stuck flights where none is about to be one."""

OnAnswers = Callable[[Sequence[Row], Sequence[Answer | TwinferError]], None]


@dataclass(slots=True, eq=False)
class _Airborne:
    """A flight in the air, and what the batcher expects of it."""

    flight: Flight
    overdue_at: float
    is_stuck: bool = False
    late_rows: set[int] = field(default_factory=set)
    """The rows, by id, that could not wait for the landing and have been answered."""


class Batcher:
    """Boards waiting rows, launches flights and hands their answers to `on_answers`, which is called from any thread."""

    def __init__(self, ensemble: Ensemble, on_answers: OnAnswers) -> None:
        """Serve a warm ensemble; `start` starts the threads."""
        self.on_flight: tuple[OnFlight, ...] = ()
        """Who is told of landings; with nobody here they are not even written down."""
        self.loss = ""
        """Why the device is lost for good, once it is; what is in hand still gets its answers, all of them errors."""
        self._ensemble = ensemble
        self._on_answers = on_answers
        self._max_rows = ensemble.spec.batching.max_rows
        self._max_delay_seconds = ensemble.spec.batching.max_delay_ms / 1000
        self._changed = threading.Condition(threading.Lock())
        # All below is guarded by _changed.
        self._queue = RowQueue()
        self._traffic = [LaneTraffic(member) for member in ensemble.members]
        self._air: list[_Airborne] = []
        self._lead_seconds = 0.0
        self._held_until = 0.0
        self._short_since = 0.0
        """Since when rows wait because a lane has no free slot; 0 while none do."""
        self._launcher: threading.Thread | None = None
        self._is_closing = False
        self._waiters: Workers | None = None

    def start(self) -> None:
        """Start the launch thread and the wait threads."""
        self._replace_launcher()
        self._waiters = Workers("wait", 2 * len(self._ensemble.members) + 1, self._ensemble.device.prepare_thread)

    def close(self) -> None:
        """End the threads once nothing waits any more; does not wait for what is stuck."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._waiters is not None:
            self._waiters.close()

    def put(self, row: Row) -> None:
        """Let a prepared row wait for its flight."""
        with self._changed:
            self._queue.put(row)
            self._changed.notify()

    def discard_answered(self) -> None:
        """Forget the waiting rows that have been answered, cancelled or failed meanwhile."""
        with self._changed:
            self._queue.discard_answered()

    def look_for_stuck(self) -> float:
        """Get flights that are overdue out of the others' way; give the seconds after which another look may help."""
        with self._changed:
            now = time.monotonic()
            for airborne in self._air:
                if now >= airborne.overdue_at and not airborne.is_stuck:
                    self._go_around(airborne)
            self._changed.notify()
            pending = [airborne.overdue_at - now for airborne in self._air if not airborne.is_stuck]
            return max(0.005, min(pending, default=LOOK_SECONDS))

    def standing_seconds(self) -> dict[str, float]:
        """Say for how long each member's lane has been behind its time, by member name."""
        with self._changed:
            now = time.monotonic()
            names = [member.name for member in self._ensemble.members]
            return {name: traffic.standing_since(now) for name, traffic in zip(names, self._traffic, strict=True)}

    # --- the launch thread ---------------------------------------------------------------------------------------------------

    def _replace_launcher(self) -> None:
        self._launcher = threading.Thread(target=self._launch_flights, name="launch", daemon=True)
        self._launcher.start()

    def _launch_flights(self) -> None:
        self._ensemble.device.prepare_thread()
        self._ensemble.device.give_way()
        with torch.inference_mode():
            while (flight := self._next_flight()) is not None:
                self._launch(flight)

    def _next_flight(self) -> Flight | None:
        """Sleep until rows can fly and board them; None once this thread has been replaced or the batcher closes."""
        with self._changed:
            while self._launcher is threading.current_thread():
                now = time.monotonic()
                flight = self._board(now) if self._queue else None
                if flight is not None:
                    return flight
                if self._is_closing and not self._queue:
                    return None
                self._changed.wait(self._seconds_to_next_look(now) if self._queue else None)
            return None

    def _launch(self, flight: Flight) -> None:
        began = time.monotonic()
        try:
            flight.launch()
        except Exception as error:  # a device that refuses work fails this flight's rows, and the next one tries again
            self._wait_for(flight, error)
            return
        if flight.landed.is_done():
            self._land(flight)
            return
        with self._changed:
            self._lead_seconds += 0.2 * (time.monotonic() - began - self._lead_seconds)
        self._wait_for(flight, None)

    def _wait_for(self, flight: Flight, error: Exception | None) -> None:
        assert self._waiters is not None
        self._waiters.do(partial(self._await_landing, flight, error))

    # --- boarding, under the lock --------------------------------------------------------------------------------------------

    def _board(self, now: float) -> Flight | None:
        """Take as many rows as fit and can fly now, and make their flight; the others go on waiting."""
        self._free_done()
        waits = [traffic.wait_seconds(now) for traffic in self._traffic]
        if not all(traffic.has_slot for traffic in self._traffic):
            self._short_since = self._short_since or now
        is_ready = [traffic.has_slot and wait <= self._lead_seconds for traffic, wait in zip(self._traffic, waits, strict=True)]
        rows: list[Row] = []
        left_out: dict[tuple[int, int], TwinferError] = {}
        staying: list[Row] = []
        for row in self._queue.take_in_order():
            if row.reply_by <= now:
                continue  # its timer is about to fail it; work for it would be wasted
            busy = [index for index in row.samples if not is_ready[index]]
            late = [index for index in busy if row.policy is Policy.BEST_EFFORT and now + waits[index] >= row.reply_by]
            if len(late) < len(busy) or len(late) == len(row.samples):
                staying.append(row)
                continue
            for index in late:
                left_out[len(rows), index] = self._left_behind(index, waits[index])
            rows.append(row)
            if len(rows) == self._max_rows:
                break
        if rows and self._max_delay_seconds and len(rows) < self._max_rows:
            self._held_until = min(row.ready_at for row in rows) + self._max_delay_seconds
            if not self._air and now < self._held_until:
                staying, rows = staying + rows, []
        for row in staying:
            self._queue.put(row)
        return self._take_off(rows, left_out, now) if rows else None

    def _take_off(self, rows: list[Row], left_out: dict[tuple[int, int], TwinferError], now: float) -> Flight:
        flying = {index for n, row in enumerate(rows) for index in row.samples if (n, index) not in left_out}
        # Slots of one number where there are some: a captured flight has its own in each lane.
        common = set.intersection(*(self._traffic[index].free_numbers for index in flying))
        number = min(common, default=None)
        slots = {index: self._traffic[index].take_slot(number) for index in sorted(flying)}
        # Beside a stuck flight only lanes of their own keep the members apart.
        plan = "lanes" if any(airborne.is_stuck for airborne in self._air) else None
        flight = self._ensemble.board(rows, slots, left_out, plan)
        for run, seconds in zip(flight.runs, flight.alone_seconds, strict=True):
            self._traffic[run.member.index].take_off(run, now, seconds)
        overdue_at = now + OVERDUE_FACTOR * sum(flight.alone_seconds) + OVERDUE_SECONDS
        self._air.append(_Airborne(flight, overdue_at))
        flight.slot_wait_seconds = now - self._short_since if self._short_since else 0.0
        self._short_since = 0.0
        return flight

    def _left_behind(self, index: int, wait_seconds: float) -> MemberLate:
        name = self._ensemble.members[index].name
        return MemberLate(f"the member's lane is behind by about {wait_seconds:.3f} s, more than the row had left", member=name)

    def _seconds_to_next_look(self, now: float) -> float | None:
        """Say when boarding may go differently although nobody calls: a lane gets free, or a delay is over."""
        looks = [traffic.wait_seconds(now) - self._lead_seconds for traffic in self._traffic if traffic.has_slot]
        looks = [look for look in looks if look > 0] or [0.05]
        held = self._held_until - now
        return max(0.0005, min(*looks, held if held > 0 else 1.0))

    def _go_around(self, airborne: _Airborne) -> None:
        """Keep a stuck flight from holding more than the lane that it is stuck on."""
        airborne.is_stuck = True
        flight = airborne.flight
        stuck = [run.member.name for run in flight.runs if run.is_claimed and not run.done.is_done()]
        logger.warning("a flight of %d rows is overdue; lanes not done: %s", len(flight.rows), ", ".join(stuck))
        if not flight.is_launched:
            flight.rescue(self._ensemble.plans["lanes"])
            self._replace_launcher()

    def _free_done(self) -> None:
        """Free the slots of members that are done in flights where another is stuck."""
        for airborne in self._air:
            if airborne.is_stuck:
                for run in airborne.flight.keep_outputs():
                    self._traffic[run.member.index].free(run)

    # --- landing -------------------------------------------------------------------------------------------------------------

    def _await_landing(self, flight: Flight, error: Exception | None) -> None:
        """Wait for a flight, or for what is left of one whose launch ended with `error`."""
        with torch.inference_mode():
            try:
                if error is None:
                    flight.landed.wait()
            except Exception as loss:  # only a device that is lost cannot be waited for
                error = loss
            if error is not None:
                flight.break_off(error)
            self._land(flight)

    def _land(self, flight: Flight) -> None:
        """Answer the flight's rows and free its slots; the lanes it used have done their part."""
        landed_at = time.monotonic()
        seconds = landed_at - flight.launched_at
        try:
            fused = flight.fused if flight.fused is not None else flight.fuse_now(flight.rows)
            answers = answer_rows(flight, flight.rows, fused, seconds)
        except Exception:
            logger.exception("fusing a flight of %d rows failed", len(flight.rows))
            answers = fusion_failure(flight)
        # Before the flight leaves the air: whoever does not find it there may tell a row that it never flew.
        self._on_answers(flight.rows, answers)
        if self.on_flight:
            self._tell(flight, landed_at)
        with self._changed:
            for run in flight.runs:
                self._traffic[run.member.index].free(run)
            self._air = [airborne for airborne in self._air if airborne.flight is not flight]
            self._changed.notify()
        if not self.loss and any(run.error is not None for run in flight.runs):
            self.loss = self._ensemble.device.find_loss()

    def _tell(self, flight: Flight, landed_at: float) -> None:
        """Tell whoever listens of a landing; its failure is not the rows'."""
        try:
            record = record_flight(flight, landed_at)
            for listener in self.on_flight:
                listener(record)
        except Exception:
            logger.exception("recording a flight failed")

    def fuse_late(self, row: Row) -> tuple[list[Row], list[Answer | TwinferError]] | None:
        """Answer `row`, and those of its flight that are as late, from the members so far; None if it is not in the air."""
        with self._changed:  # held while fusing: the slots, where outputs lie, are not freed meanwhile
            airborne = next((airborne for airborne in self._air if row in airborne.flight.rows), None)
            if airborne is None:
                return None
            flight, now = airborne.flight, time.monotonic()
            rows = [
                other
                for other in flight.rows
                if other is row or (other.reply_by <= now + TOGETHER_SECONDS and not other.is_answered)
            ]
            rows = [other for other in rows if id(other) not in airborne.late_rows]
            airborne.late_rows.update(map(id, rows))
            done = flight.done_members
            try:
                return rows, answer_rows(flight, rows, flight.fuse_now(rows), now - flight.launched_at, done) if rows else []
            except Exception:
                logger.exception("fusing %d late rows failed", len(rows))
                return rows, [InternalError("the fusion raised an error; the server's log has it") for _ in rows]

"""The batcher: has rows board, and has the threads that launch their flights and wait for them.

One launch thread at a time queues device work, so stream order is decided in one place. When the lanes are idle it takes whatever
waits, even a single row; while a flight computes, rows collect until that flight is about to land. On a CPU the serial plan
computes on the launch thread itself; if a member gets stuck there, another thread takes over the launching.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from ..errors import MemberLate, TwinferError
from ..executor import Ensemble, Flight
from ..settings import ServerSettings
from ..types import Policy, Request, Response
from .air import Air
from .boarding import Boarding
from .landing import judge_between, judge_late, land
from .record import OnFlight, record_flight
from .switchboard import OnSwitch, Switchboard, refusal
from .workers import Workers

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often a waiting row looks for stuck flights where none is about to be one."""

HOLD_SECONDS = 10.0
"""How long a change that needs the air to be clear waits for it."""

OnAnswers = Callable[[Sequence[Request], Sequence[Response | TwinferError]], None]


class Batcher:
    """Boards waiting rows, launches flights and hands their answers to `on_answers`, which is called from any thread."""

    def __init__(self, ensemble: Ensemble, settings: ServerSettings, on_answers: OnAnswers, on_switch: OnSwitch) -> None:
        """Serve a warm ensemble; `start` starts the threads. `on_switch` is told when a member has been switched, on any thread."""
        self.switchboard = Switchboard(ensemble, settings, on_switch)
        self.on_flight: tuple[OnFlight, ...] = ()
        """Who is told of landings; with nobody here they are not even written down."""
        self.loss = ""
        """Why the device is lost for good, once it is; what is in hand still gets its answers, all of them errors."""
        self._ensemble = ensemble
        self._on_answers = on_answers
        self._changed = threading.Condition(threading.Lock())
        # All below is guarded by _changed.
        self._boarding = Boarding(ensemble, self.switchboard)
        self._air = Air()
        self._launcher: threading.Thread | None = None
        self._is_closing = False
        self._is_held = False
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

    def put(self, rows: Sequence[Request]) -> None:
        """Let prepared rows wait for their flights."""
        with self._changed:
            for row in rows:
                if self._air:
                    row.blocked_at = row.ready_at
                self._boarding.queue.put(row)
            self._changed.notify()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let nothing take off, and begin when nothing is in the air; rows wait. Raises MemberLate if a flight does not land.

        For threads that may wait; one at a time.
        """
        with self._changed:
            self._is_held = True
            is_clear = self._changed.wait_for(lambda: not self._air, timeout=HOLD_SECONDS)
        try:
            if not is_clear:
                raise MemberLate(f"a flight has not landed for {HOLD_SECONDS} s, so nothing can be changed; a member is stuck")
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()

    def discard_answered(self) -> None:
        """Forget the waiting rows that have been answered, cancelled or failed meanwhile."""
        with self._changed:
            self._boarding.queue.discard_answered()

    def look_for_stuck(self) -> float:
        """Get flights that are overdue out of the others' way; give the seconds after which another look may help."""
        with self._changed:
            now = time.monotonic()
            for flight in self._air.find_newly_stuck(now):
                self._go_around(flight)
            self.switchboard.look_for_stalled([airborne.flight for airborne in self._air], now)
            self._changed.notify()
            pending = self._air.seconds_to_overdue(now)
            return max(0.005, pending if pending < math.inf else LOOK_SECONDS)

    def set_member(self, index: int, is_on: bool) -> None:
        """Switch a member on or off by hand."""
        with self._changed:
            self.switchboard.set_by_hand(index, is_on)
            self._changed.notify()

    def standing_seconds(self) -> dict[str, float]:
        """Say for how long each member's lane has been behind its time, by member name."""
        with self._changed:
            return self._boarding.standing_seconds(time.monotonic())

    @property
    def waiting_rows(self) -> int:
        """How many rows wait."""
        return len(self._boarding.queue)

    # --- the launch thread ---------------------------------------------------------------------------------------------------

    def _replace_launcher(self) -> None:
        self._launcher = threading.Thread(target=self._launch_flights, name="launch", daemon=True)
        self._launcher.start()

    def _launch_flights(self) -> None:
        self._ensemble.device.prepare_thread()
        self._ensemble.device.give_way()
        with torch.inference_mode():
            while True:
                try:
                    flight = self._next_flight()
                    if flight is None:
                        return
                    self._launch(flight)
                    del flight  # and its rows: the next may be long in coming
                except Exception:  # a defect; the rows concerned run into their deadlines, the others fly on
                    logger.exception("boarding or launching failed")

    def _next_flight(self) -> Flight | None:
        """Sleep until rows can fly and board them; None once this thread has been replaced or the batcher closes."""
        with self._changed:
            while self._launcher is threading.current_thread():
                now, queue = time.monotonic(), self._boarding.queue
                flight = None if self._is_held else self._board_probe(now) or (self._board(now) if queue else None)
                if flight is not None:
                    return flight
                if self._is_closing and not queue:
                    return None
                looks = [self._boarding.seconds_to_next_look(now) if queue else None, self._boarding.seconds_to_next_probe(now)]
                self._changed.wait(None if self._is_held else min((look for look in looks if look is not None), default=None))
            return None

    def _board_probe(self, now: float) -> Flight | None:
        """Make a flight that tries a member which is off, under the lock; None if none is due."""
        flight = self._boarding.board_probe(now)
        if flight is not None:
            self._air.take_off(flight, now, is_probe=True)
        return flight

    def _board(self, now: float) -> Flight | None:
        """Make the next flight, under the lock; None if nobody can fly now."""
        stuck = self._air.stuck
        for flight in stuck:  # members that are done in them need their slots no more
            for run in flight.keep_outputs():
                self._boarding.free(run)
        boarded = self._boarding.board(now, is_air_empty=not self._air, is_beside_stuck=bool(stuck))
        refused, self._boarding.refused = self._boarding.refused, []
        for row, off in refused:
            # Between its two flights a row already has what the first member said.
            is_answerable = row.parts and row.policy is Policy.BEST_EFFORT
            self._on_answers([row], [judge_between(self._ensemble, row, off) if is_answerable else refusal(row.policy, off)])
        if boarded is not None:
            self._air.take_off(boarded, now)
        return boarded

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
            self._boarding.lead_seconds += 0.2 * (time.monotonic() - began - self._boarding.lead_seconds)
        self._wait_for(flight, None)

    def _wait_for(self, flight: Flight, error: Exception | None) -> None:
        assert self._waiters is not None
        self._waiters.do(partial(self._await_landing, flight, error))

    # --- stuck flights, under the lock ---------------------------------------------------------------------------------------

    def _go_around(self, flight: Flight) -> None:
        """Keep a stuck flight from holding more than the lane that it is stuck on."""
        stuck = [run.member.name for run in flight.runs if run.is_claimed and not run.done.is_done()]
        logger.warning("a flight of %d rows is overdue; lanes not done: %s", len(flight.rows), ", ".join(stuck) or "none")
        if not flight.is_launched:
            flight.rescue(self._ensemble.plans["streams"])
            self._replace_launcher()

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
        is_probe = self._air.find(flight).is_probe
        landing = land(flight, self._ensemble, seconds)
        if not is_probe:
            # Before the flight leaves the air: whoever does not find it there may tell a row that it never flew.
            self._on_answers(landing.rows, landing.answers)
            time.sleep(0)  # lets the event loop have the interpreter: answers go out before this thread keeps its books
            if self.on_flight:
                self._tell(flight, landed_at)
        with self._changed:
            self.switchboard.note_landing(flight, landing.find_failures(), is_probe=is_probe, seconds=seconds)
            for row in landing.going_on:
                assert self._ensemble.cascade is not None
                self._ensemble.cascade.send_on(flight, row, seconds)
                self._boarding.queue.put(row)
            for run in flight.runs:
                self._boarding.free(run)
            self._air.land(flight)
            self._changed.notify_all()  # the launch thread, and whoever wants the air clear
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

    def fuse_late(self, row: Request) -> tuple[list[Request], list[Response | TwinferError]] | None:
        """Answer `row`, and those of its flight that are as late, from the members so far; None if it is not in the air."""
        with self._changed:  # held while fusing: the slots, where outputs lie, are not freed meanwhile
            airborne = self._air.find_carrying(row)
            if airborne is None:
                text = "the first member was not sure, and the row could not wait for this one"
                late = {index: MemberLate(text, member=self._ensemble.members[index].name) for index in row.crew}
                return ([row], [judge_between(self._ensemble, row, late)]) if row.parts else None
            now = time.monotonic()
            rows = airborne.take_late(row, now)
            return rows, judge_late(airborne.flight, self._ensemble, rows, now)

"""Flights: one batch under way, from staging to landing.

    copy in ──┬─ staged ──► member lane A ──┬─ done ──► fusion ──► landed
              └─ staged ──► member lane B ──┘

A flight is written once for every plan: the plan only says which lane does what. It owns its slots and its rows' inputs until it
has landed, also when a member fails, a launch breaks off half-way or every caller has gone away.
"""

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Device
from ..errors import MemberFailed, TwinferError
from ..fusion import FusionResult
from ..types import PartialResult, Request
from .capture import FlightCapture
from .crew import Crew
from .execution import Plan
from .gather import gather_outputs
from .moving import to_device, to_host
from .run import Run

logger = logging.getLogger(__name__)


LeftOut = Mapping[tuple[int, int], TwinferError]


class Flight:
    """One batch under way. Made by `Ensemble.board`, launched by the launch thread, landed once `landed` is done.

    `left_out` says, by (row number, member index), why a member that the row has input for does not take part.
    """

    def __init__(
        self, rows: Sequence[Request], runs: Sequence[Run], left_out: LeftOut, execution: Plan, crew: Crew, device: Device,
        capture: FlightCapture | None = None,
    ) -> None:  # fmt: skip
        """Take the rows on board; with `capture` the flight is one graph."""
        self.rows = tuple(rows)
        self.runs = tuple(runs)
        self.left_out = left_out
        self.execution = execution
        self.crew = crew
        self.capture = capture
        self.started, self.landed = device.event(), device.event()
        self.number = 0
        self.boarded_at = self.launched_at = self.launch_ended_at = 0.0
        self.solo_seconds: Sequence[float] = ()
        self.is_launched = False
        self._fused: FusionResult | None = None
        self._kept: set[int] = set()
        self._is_broken = False
        self._home = device
        self._device = device.torch_device
        self._make_event = device.event
        self._numbers = {id(row): number for number, row in enumerate(self.rows)}

    def launch(self) -> None:
        """Queue the whole flight and return at once (on lanes that run inline: when it has landed). Launch thread only."""
        self.launched_at = time.monotonic()
        self._queue_all()
        self.launch_ended_at = time.monotonic()
        self.is_launched = True

    def _queue_all(self) -> None:
        execution = self.execution
        execution.copy.record(self.started)
        if self.capture is not None:
            self.capture.launch(self.runs, self._weights(self.rows), self.crew.version)
            execution.copy.record(self.landed)
            return
        for run in self.runs:
            run.slot.write(run.samples, run.bucket, is_fed=bool(run.feeders))
            # What travels to another device does so on the member's own lane there.
            lane = execution.copy if run.member.device is self._home else execution.members[run.member.index]
            lane.run(lambda run=run: run.slot.copy_in(run.bucket, is_fed=bool(run.feeders)))  # type: ignore[misc]
            lane.record(run.staged)
        for run in self.runs:
            if run.claim():
                run.queue_on(execution.members[run.member.index])
        for run in self.runs:
            execution.fusion.wait_for(run.done)
        execution.fusion.run(self._fuse)
        execution.fusion.record(self.landed)

    def rescue(self, execution: Plan) -> None:
        """Move the members that wait behind a stuck one to the lanes of `plan`, and queue those lanes behind what is stuck.

        Any thread; safe to call again.
        """
        for run in self.runs:
            lane = execution.members[run.member.index]
            if run.claim():
                run.queue_on(lane)
            elif not run.done.is_done():
                lane.wait_for(run.done)

    def break_off(self, error: Exception) -> None:
        """End a flight that raised half-way: wait for the lanes already started, then fail the members that were not."""
        logger.error("a flight broke off: %s", error, exc_info=error)
        self._is_broken = True
        lanes = dict.fromkeys(
            (self.execution.copy, *(run.lane for run in self.runs if run.lane is not None), self.execution.fusion)
        )
        try:
            for lane in lanes:
                # Not the flight's own events: the launch may have broken off before they were recorded.
                settled = self._make_event()
                lane.record(settled)
                settled.wait()
            done = [run.has_output for run in self.runs]
        except Exception:  # a device that is lost cannot be waited for either; nothing on it will ever touch the slots again
            logger.exception("the lanes cannot be waited for")
            done = [False for _ in self.runs]
        for run, is_done in zip(self.runs, done, strict=True):
            if not is_done and run.error is None:
                run.error = MemberFailed(f"the flight broke off: {type(error).__name__}: {error}", member=run.member.name)

    @property
    def done_members(self) -> frozenset[int]:
        """The members that are done by now, by index."""
        return frozenset(run.member.index for run in self.runs if run.done.is_done())

    def keep_outputs(self) -> list[Run]:
        """Copy what members that are done have answered out of their slots, so that those can be freed before the flight lands.

        Gives the runs that need their slot no more. What the fusion on the device makes of the slots is void then: the flight is
        fused on the host when it lands. Never waits; one thread at a time.
        """
        hungry = {index for run in self.runs if not run.done.is_done() for index in run.feeders}
        runs = [run for run in self.runs if run.member.index not in self._kept | hungry and run.done.is_done()]
        for run in runs:
            if run.host_output is not None:
                run.host_output = run.host_output.clone()
            self._kept.add(run.member.index)
        return runs

    @property
    def fused(self) -> FusionResult | None:
        """The fused output on the host, once the flight has landed; None if that is void, or the fusion raised.

        After a flight has broken off, the buffers may still hold the output of the one before.
        """
        if self._kept or self._is_broken:
            return None
        return self._fused if self.capture is None else self.capture.read_fused(len(self.rows))

    @property
    def is_spread(self) -> bool:
        """Whether some of its members are on another device than the fusion."""
        return any(run.member.device is not self._home for run in self.runs)

    @property
    def join_seconds(self) -> float | None:
        """The time from fork to join: the first member's start to the last one's end. None unless all ran to their end.

        Of a captured flight all there is to see from outside is the graph, copies and fusion included; of one whose members are on
        several devices, whose clocks cannot be compared, the whole. Such a flight has to have landed.
        """
        if not self.runs or not all(run.has_output for run in self.runs):
            return None
        if self.capture is not None or self.is_spread:
            began = self.started if self.capture is None else self.capture.written
            return self.landed.seconds_since(began) if self.landed.is_done() else None
        fork = self.runs[0].started
        starts = [run.started.seconds_since(fork) for run in self.runs]
        ends = [run.done.seconds_since(fork) for run in self.runs]
        return max(ends) - min(starts)

    @property
    def overlap_ratio(self) -> float | None:
        """The sum of the members' alone times over the time from fork to join; None if fewer than two ran to their end."""
        seconds = self.join_seconds
        return sum(self.solo_seconds) / seconds if seconds and len(self.runs) > 1 and self.solo_seconds else None

    def fuse_now(self, rows: Sequence[Request], without: int | None = None) -> FusionResult:
        """Fuse `rows` on the host from the members that have answered; never waits for the device. Any thread.

        The member with the index `without` is taken for absent: what would the others have said?
        """
        with torch.inference_mode():
            outputs, counts = self._gather(rows, torch.device("cpu"))
            if without is not None:
                counts[:, without] = 0
            return self.crew.version.fuse(outputs, self._weights(rows), torch.from_numpy(counts), on_host=True)

    def part_of(self, row: Request, index: int) -> PartialResult:
        """Keep what a member gave for a row, for the row's next flight; call it when the flight has landed."""
        number = self._numbers[id(row)]
        run = next((run for run in self.runs if run.member.index == index and number in run.firsts), None)
        error = self.left_out.get((number, index)) or (run.error if run is not None else None)
        if run is None or error is not None:
            return PartialResult(None, error, None, None, used_cuda_graph=False)
        alone = self.solo_seconds[self.runs.index(run)] if self.solo_seconds else None
        return PartialResult(run.sample_of(number), None, run.seconds, alone, run.used_cuda_graph)

    def number_of(self, row: Request) -> int:
        """Find the row's number in this flight."""
        return self._numbers[id(row)]

    def _fuse(self) -> None:
        """Fuse all rows on the fusion lane and send the result to the host."""
        try:
            outputs, counts = self._gather(self.rows, self._device)
            weights = to_device(self._weights(self.rows), self._device)
            fused = self.crew.version.fuse(outputs, weights, to_device(torch.from_numpy(counts), self._device))
            self._fused = FusionResult(
                to_host(fused.prediction),
                to_host(fused.weights),
                to_host(fused.disagreement),
                to_host(fused.present),
            )
        except Exception:  # the rows are then judged by what `fuse_now` can still do for them
            logger.exception("the fusion raised")

    def _weights(self, rows: Sequence[Request]) -> Tensor:
        """Give the rows' weights, float32 [rows, members]: their own, or those of this flight's version of the fusion."""
        weights = np.empty((len(rows), len(self.crew.members)), dtype=np.float32)
        weights[:] = self.crew.version.weights
        for place, row in enumerate(rows):
            if row.weights is not None:
                weights[place] = row.weights
        return torch.from_numpy(weights)

    def _gather(self, rows: Sequence[Request], device: torch.device) -> tuple[list[Tensor], NDArray[np.int32]]:
        numbered = {self._numbers[id(row)]: row for row in rows}
        return gather_outputs(numbered, {run.member.index: run for run in self.runs}, self.crew.members, device)

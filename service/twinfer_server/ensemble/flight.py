"""Flights: one batch under way, from staging to landing.

    copy in ──┬─ staged ──► member lane A ──┬─ done ──► fusion ──► landed
              └─ staged ──► member lane B ──┘

A flight is written once for every plan: the plan only says which lane does what. It owns its slots and its rows' inputs until it
has landed, also when a member fails, a launch breaks off half-way or every caller has gone away.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Device
from ..errors import MemberFailed, TwinferError
from ..fusion import Fused, Fusion
from ..rows import Row
from .capture import FlightCapture
from .member import Member
from .plan import Plan
from .run import Run

logger = logging.getLogger(__name__)


LeftOut = Mapping[tuple[int, int], TwinferError]


@dataclass(frozen=True, slots=True)
class Crew:
    """Who flies: the ensemble's members, its fusion, and the same fusion on the CPU for rows that cannot wait for the join."""

    members: tuple[Member, ...]
    fusion: Fusion
    host_fusion: Fusion


class Flight:
    """One batch under way. Made by `Ensemble.board`, launched by the launch thread, landed once `landed` is done.

    `left_out` says, by (row number, member index), why a member that the row has input for does not take part.
    """

    def __init__(
        self, rows: Sequence[Row], runs: Sequence[Run], left_out: LeftOut, plan: Plan, crew: Crew, device: Device,
        capture: FlightCapture | None = None,
    ) -> None:  # fmt: skip
        """Take the rows on board; with `capture` the flight is one graph."""
        self.rows = tuple(rows)
        self.runs = tuple(runs)
        self.left_out = left_out
        self.plan = plan
        self.crew = crew
        self.capture = capture
        self.started, self.landed = device.event(), device.event()
        self.number = 0
        self.boarded_at = self.launched_at = self.launch_ended_at = 0.0
        self.alone_seconds: Sequence[float] = ()
        self.is_launched = False
        self._fused: Fused | None = None
        self._kept: set[int] = set()
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
        plan = self.plan
        plan.copy.record(self.started)
        if self.capture is not None:
            self.capture.launch(self.runs, self._weights(range(len(self.rows))))
            plan.copy.record(self.landed)
            return
        for run in self.runs:
            run.slot.write(run.samples, run.bucket)
            plan.copy.run(lambda run=run: run.slot.copy_in(run.bucket))  # type: ignore[misc]
            plan.copy.record(run.staged)
        for run in self.runs:
            if run.claim():
                run.queue_on(plan.members[run.member.index])
        for run in self.runs:
            plan.fusion.wait_for(run.done)
        plan.fusion.run(self._fuse)
        plan.fusion.record(self.landed)

    def rescue(self, plan: Plan) -> None:
        """Move the members that wait behind a stuck one to the lanes of `plan`, and queue those lanes behind what is stuck.

        Any thread; safe to call again.
        """
        for run in self.runs:
            lane = plan.members[run.member.index]
            if run.claim():
                run.queue_on(lane)
            elif not run.done.is_done():
                lane.wait_for(run.done)

    def break_off(self, error: Exception) -> None:
        """End a flight that raised half-way: wait for the lanes already started, then fail the members that were not."""
        logger.error("a flight broke off: %s", error, exc_info=error)
        lanes = dict.fromkeys((self.plan.copy, *(run.lane for run in self.runs if run.lane is not None), self.plan.fusion))
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
        runs = [run for run in self.runs if run.member.index not in self._kept and run.done.is_done()]
        for run in runs:
            if run.host_output is not None:
                run.host_output = run.host_output.clone()
            self._kept.add(run.member.index)
        return runs

    @property
    def fused(self) -> Fused | None:
        """The fused output on the host, once the flight has landed; None if that is void, or the fusion raised."""
        if self._kept:
            return None
        return self._fused if self.capture is None else self.capture.read_fused(len(self.rows))

    @property
    def join_seconds(self) -> float | None:
        """The time from fork to join: the first member's start to the last one's end. None unless all ran to their end.

        Of a captured flight all there is to see from outside is the whole, copies and fusion included.
        """
        if not all(run.has_output for run in self.runs):
            return None
        if self.capture is not None:
            return self.landed.seconds_since(self.started)
        fork = self.runs[0].started
        starts = [run.started.seconds_since(fork) for run in self.runs]
        ends = [run.done.seconds_since(fork) for run in self.runs]
        return max(ends) - min(starts)

    @property
    def overlap_ratio(self) -> float | None:
        """The sum of the members' alone times over the time from fork to join; None if fewer than two ran to their end."""
        seconds = self.join_seconds
        return sum(self.alone_seconds) / seconds if seconds and len(self.runs) > 1 and self.alone_seconds else None

    def fuse_now(self, rows: Sequence[Row]) -> Fused:
        """Fuse `rows` on the host from the members that have answered; never waits for the device. Any thread."""
        numbers = [self._numbers[id(row)] for row in rows]
        with torch.inference_mode():
            outputs, present = self._gather(numbers, torch.device("cpu"))
            fused: Fused = self.crew.host_fusion(outputs, self._weights(numbers), torch.from_numpy(present))
            return fused

    def number_of(self, row: Row) -> int:
        """Find the row's number in this flight."""
        return self._numbers[id(row)]

    def _fuse(self) -> None:
        """Fuse all rows on the fusion lane and send the result to the host."""
        try:
            numbers = range(len(self.rows))
            outputs, present = self._gather(numbers, self._device)
            weights = _to_device(self._weights(numbers), self._device)
            fused = self.crew.fusion(outputs, weights, _to_device(torch.from_numpy(present), self._device))
            self._fused = Fused(
                _to_host(fused.prediction),
                _to_host(fused.weights),
                _to_host(fused.disagreement),
                _to_host(fused.present),
            )
        except Exception:  # the rows are then judged by what `fuse_now` can still do for them
            logger.exception("the fusion raised")

    def _weights(self, numbers: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self.rows[number].weights for number in numbers]).astype(np.float32))

    def _gather(self, numbers: Sequence[int], device: torch.device) -> tuple[list[Tensor], NDArray[np.bool_]]:
        """Bring each member's output into row order: float32 [rows, ...] per member, and who is present, bool [rows, members].

        On the host only members that have answered are present; on the device the join has seen to that.
        """
        present = np.zeros((len(numbers), len(self.crew.members)), dtype=np.bool_)
        outputs = [torch.zeros(()).expand(len(numbers), *member.output_shape) for member in self.crew.members]
        for run in self.runs:
            output = run.host_output if device.type == "cpu" else run.output
            if output is None or (device.type == "cpu" and not run.has_output):
                continue
            samples = [run.positions.get(number, -1) for number in numbers]
            present[:, run.member.index] = [sample >= 0 for sample in samples]
            if samples != list(range(len(output))):
                # A row without a sample borrows the first one; it is not present, so nothing comes of it.
                picked = torch.tensor([max(sample, 0) for sample in samples])
                output = output.index_select(0, _to_device(picked, device))
            outputs[run.member.index] = output
        return [_to_device(output, device) for output in outputs], present


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    if values.device == device:
        return values
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def _to_host(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)

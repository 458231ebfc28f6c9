"""Runs: one member's part in a flight."""

import itertools
import logging
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Device, Event, Lane
from ..errors import MemberFailed, TwinferError
from ..rows import Row
from .member import Member
from .slot import Slot

logger = logging.getLogger(__name__)


class Run:
    """One member's part in a flight: its rows, its slot, and the events that say how far it is.

    `rows` are the flight's rows that have input for the member, in the order of its samples; by row number, `firsts` says which
    sample is a row's first and `sizes` how many it has. `host_output` is real once `done` is.
    """

    def __init__(self, member: Member, slot: Slot, rows: Sequence[int], flight_rows: Sequence[Row], device: Device) -> None:
        """Board the rows with the numbers `rows` of `flight_rows`."""
        self.member = member
        self.slot = slot
        self.rows = tuple(rows)
        self.samples = [flight_rows[row].samples[member.index] for row in self.rows]
        sizes = [len(samples[0]) for samples in self.samples]
        self.sizes = dict(zip(self.rows, sizes, strict=True))
        self.firsts = dict(zip(self.rows, itertools.accumulate(sizes, initial=0), strict=False))
        self.total = sum(sizes)
        self.bucket = member.bucket(self.samples)
        self.staged, self.started = device.event(), device.event()
        self.done: Event = device.event()
        self.output: Tensor | None = None
        self.host_output: Tensor | None = None
        self.error: TwinferError | None = None
        self.lane: Lane | None = None
        self.is_in_capture = False
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Take the run for the one lane that will compute it; False if another lane already has."""
        return self._claim.acquire(blocking=False)

    @property
    def is_claimed(self) -> bool:
        """Whether a lane has taken the run."""
        return self._claim.locked()

    @property
    def has_output(self) -> bool:
        """Whether the member has answered; never waits."""
        return self.done.is_done() and self.error is None

    def output_on(self, device: torch.device) -> Tensor | None:
        """Give the output where it lies, for the host only if the member has answered; None where there is none."""
        if device.type == "cpu":
            return self.host_output if self.has_output else None
        return self.output

    def sample_of(self, row: int) -> NDArray[np.float32]:
        """Copy what the member gave for the row with the number `row`, float32 [samples, ...]; it must have answered."""
        assert self.host_output is not None
        first = self.firsts[row]
        values: NDArray[np.float32] = self.host_output[first : first + self.sizes[row]].numpy()
        return values.copy()  # not a view of the slot

    @property
    def seconds(self) -> float | None:
        """The member's time from start to end beside whatever else ran; None until its end, and inside a captured flight."""
        if self.is_in_capture or not self.done.is_done():
            return None
        return self.done.seconds_since(self.started)

    @property
    def was_captured(self) -> bool:
        """Whether a graph is replayed for the member, its own or the whole flight's."""
        return self.is_in_capture or self.bucket in self.slot.captures

    def fly_captured(self, host_output: Tensor, done: Event) -> None:
        """Take part in a captured flight: row n is sample n of `host_output`, real once `done` is."""
        self.claim()
        self.firsts = {row: row for row in self.rows}
        self.host_output = host_output
        self.done = done
        self.is_in_capture = True

    def queue_on(self, lane: Lane) -> None:
        """Queue the member's work between its events."""
        self.lane = lane
        lane.wait_for(self.staged)
        lane.record(self.started)
        lane.run(self._compute)
        lane.record(self.done)

    def _compute(self) -> None:
        try:
            capture = self.slot.captures.get(self.bucket)
            if capture is None:
                output = self.member.compute(self.slot, self.bucket)
                host_output = self.slot.copy_out(output)
            else:
                capture.graph.replay()
                output, host_output = capture.output, capture.host_output
            self.output, self.host_output = output[: self.total], host_output[: self.total]
        except Exception as error:  # whatever a model raises is its rows' failure and nobody else's
            logger.exception("member %s raised", self.member.name)
            self.error = MemberFailed(f"the member raised {type(error).__name__}: {error}", member=self.member.name)

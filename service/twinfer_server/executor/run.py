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
from ..types import Request
from .bucket import Bucket
from .member import Member
from .moving import to_device
from .slot import Slot

logger = logging.getLogger(__name__)


class Run:
    """One member's part in a flight: its rows, its slot, and the events that say how far it is.

    `rows` are the flight's rows that have input for the member, in the order of its samples; by row number, `firsts` says which
    sample is a row's first and `sizes` how many it has. `host_output` is real once `done` is.
    """

    def __init__(self, member: Member, slot: Slot, rows: Sequence[int], batch_size: Sequence[Request], device: Device) -> None:
        """Board the rows with the numbers `rows` of `batch_size`."""
        self.member = member
        self.slot = slot
        self.rows = tuple(rows)
        self.samples = [batch_size[row].samples[member.index] for row in self.rows]
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
        self.outputs: Sequence[Tensor] = ()
        """All that the member gave, on the device: the output that counts and those that others are fed with."""
        self.feeders: dict[int, Run] = {}
        """By member index, the runs of the same flight that feed this one. Without them it computes on what is staged."""
        self.is_starved = False
        """Whether it failed only because a feeder did."""
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

    @property
    def row_bucket(self) -> Bucket:
        """The bucket in rows, where every row gives the member as many samples; else in samples."""
        several = self.member.samples_per_row if self.member.has_fixed_samples else 1
        return Bucket(self.bucket.samples // several, self.bucket.tokens)

    def output_on(self, device: torch.device) -> Tensor | None:
        """Give the output where it lies, for the host only if the member has answered; None where there is none."""
        if device.type == "cpu":
            return self.host_output if self.has_output else None
        # From another device it comes on the lane that asks, which has waited for `done`.
        return None if self.output is None else self.output.to(device, non_blocking=True)

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
    def used_cuda_graph(self) -> bool:
        """Whether a graph is replayed for the member, its own or the whole flight's."""
        return self.is_in_capture or self.bucket in self.slot.captures

    def fly_captured(self, host_output: Tensor, done: Event) -> None:
        """Take part in a captured flight: row n is sample n of `host_output`, real once `done` is."""
        self.claim()
        self.firsts = {row: row * self.member.samples_per_row for row in self.rows}
        self.host_output = host_output
        self.done = done
        self.is_in_capture = True

    def queue_on(self, lane: Lane) -> None:
        """Queue the member's work between its events."""
        self.lane = lane
        lane.wait_for(self.staged)
        for feeder in self.feeders.values():
            lane.wait_for(feeder.done)
        lane.record(self.started)
        lane.run(self._compute)
        lane.record(self.done)

    def _take_feed(self) -> bool:
        """Copy what the feeders gave into the slot; False, with the error, if one of them gave nothing."""
        for index, feeder in self.feeders.items():
            if feeder.error is not None or not feeder.outputs:
                cause = feeder.error.text if feeder.error else "it gave nothing"
                text = f"it is fed by the member {feeder.member.name}, which failed: {cause}"
                self.error, self.is_starved = MemberFailed(text, member=self.member.name), True
                return False
            wanted = [first for row in self.rows for first in range(feeder.firsts[row], feeder.firsts[row] + feeder.sizes[row])]
            device = feeder.outputs[0].device
            picked = None if wanted == list(range(len(wanted))) else to_device(torch.tensor(wanted), device)
            self.member.take_feed(self.slot, index, feeder.member.feed(feeder.outputs, picked), self.total)
        return True

    def _compute(self) -> None:
        try:
            if self.feeders and not self._take_feed():
                return
            capture = self.slot.captures.get(self.bucket)
            if capture is None:
                self.outputs = self.member.compute_all(self.slot, self.bucket)
                host_output = self.slot.copy_out(self.outputs[0])
            else:
                capture.graph.replay()
                self.outputs, host_output = capture.outputs, capture.host_output
            self.output, self.host_output = self.outputs[0][: self.total], host_output[: self.total]
        except Exception as error:  # whatever a model raises is its rows' failure and nobody else's
            logger.exception("member %s raised", self.member.name)
            self.error = MemberFailed(f"the member raised {type(error).__name__}: {error}", member=self.member.name)

"""Captures: work recorded once as a CUDA graph and replayed with one launch.

A member is captured by itself, at each bucket in each of its slots; `serial` and `lanes` replay that or call the member
eagerly, alike. A whole flight - copy in, members side by side, fusion, copy out - is captured for the plan `graph`. Graphs of
one slot share a memory pool, for a slot is in one flight at a time; others never do.

Everything is captured at warm-up, with nothing in the air. Where the device has no graphs, nothing here is called.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Device, Event, Graph, Lane
from ..errors import InvalidEnsemble
from ..fusion import FusionResult
from .bucket import Bucket
from .execution import Plan
from .slot import Slot

if TYPE_CHECKING:
    from .crew import Crew, FusionVersion
    from .member import Member
    from .run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemberCapture:
    """A member at a bucket in a slot: replaying `graph` computes what the slot holds into the same tensors each time."""

    graph: Graph
    outputs: tuple[Tensor, ...]
    host_output: Tensor


def capture_member(member: "Member", buckets: Sequence[Bucket], lane: Lane, device: Device) -> str:
    """Capture `member` at all `buckets` in both of its slots; give the reason why not, or an empty text.

    Raises InvalidEnsemble where a capture breaks off: the allocator cannot be trusted after that, so the process has to end.
    """
    if not member.spec.cuda_graph:
        return "cuda_graph = false in the ensemble's file"
    if not member.model.is_capturable:
        return f"the loader {member.model.loader!r} cannot be captured"
    for slot in member.slots:
        pool = device.graph_pool()
        for bucket in sorted(buckets, reverse=True):  # the largest first: the smaller ones then fit into its memory

            def work(slot: Slot = slot, bucket: Bucket = bucket) -> list[Tensor]:
                outputs = member.compute_all(slot, bucket)
                return [*outputs, slot.copy_out(outputs[0])]

            reason = device.find_sync(lane, work)
            if reason:
                slot.captures.clear()
                return f"it waits for the device: {reason}"
            try:
                graph = device.capture(lane, work, pool)
            except Exception as error:
                raise InvalidEnsemble(
                    f"members.{member.name}: capturing it at {bucket.samples} samples broke off ({error}); "
                    f"set members.{member.name}.cuda_graph = false"
                ) from error
            *outputs, host_output = graph.outputs
            slot.captures[bucket] = MemberCapture(graph, tuple(outputs), host_output)
    return ""


class CannotCapture(Exception):
    """A whole flight cannot be one graph; says why. It is flown by another plan."""


class TicketEvent:
    """Done once a number that travels through the captured flight behind the member's output has come to the host.

    A CUDA event recorded inside a graph would not do: until the graph gets there, it reports the replay before.
    """

    def __init__(self, arrival: NDArray[np.int64], ticket: int) -> None:
        """Wait for `ticket` to appear in `arrival`, a pinned int64 [1]."""
        self._arrival = arrival
        self._ticket = ticket

    @property
    def done_at(self) -> None:
        """Unknown: it travelled inside the graph."""
        return

    def is_done(self) -> bool:
        """Whether the member's output is on the host."""
        return int(self._arrival[0]) == self._ticket

    def wait(self) -> None:
        """Never called: whoever waits for a captured flight waits for its landing."""
        raise RuntimeError("a ticket cannot be waited for")

    def seconds_since(self, earlier: Event) -> float:
        """Never called: inside a graph members have no times of their own."""
        raise RuntimeError("a ticket has no time")


class CapturedFusion:
    """The fusion inside the captured flights: one module for all of them, whose tensors become those of another version in place.

    They are written on the lane that the flights begin and end on, so between two of them: none is fused by half a version.
    """

    def __init__(self, version: "FusionVersion") -> None:
        """Begin as a copy of `version`."""
        self.module = copy.deepcopy(version.fusion)
        self._version = version

    def fits(self, version: "FusionVersion") -> bool:
        """Whether `version` differs in nothing but the values of its tensors; what else differs is part of the captured work."""
        ours, theirs = self._version.spec.fusion, version.spec.fusion
        values = ("weights", "temperatures", "fitted")
        if any(getattr(ours, key) != getattr(theirs, key) for key in type(ours).model_fields if key not in values):
            return False
        shapes = [{name: tensor.shape for name, tensor in fusion.state_dict().items()} for fusion in (self.module, version.fusion)]
        return shapes[0] == shapes[1]

    def become(self, version: "FusionVersion", lane: Lane) -> None:
        """Queue the writing of `version`'s tensors, unless they are there already. Launch thread only."""
        if version is self._version:
            return
        theirs = version.fusion.state_dict()

        def write() -> None:
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(theirs[name], non_blocking=True)

        lane.run(write)
        self._version = version


class FlightCapture:
    """A whole flight at a bucket, in one slot of every member's lane.

    Rows keep their places: row n is sample n of every member, and a member that a row has no input for leaves a hole that the
    fusion passes over. So any mix of modalities fits, as long as it needs every member.
    """

    def __init__(
        self, crew: "Crew", fusion: "CapturedFusion", slots: Sequence[Slot], buckets: Sequence[Bucket], execution: Plan, device: Device
    ) -> None:  # fmt: skip
        """Capture the flight with `plan`'s lanes; `slots` and `buckets` have one for each member, all with the same samples.

        Raises CannotCapture, and InvalidEnsemble where the capture breaks off: the process has to end then.
        """
        self._crew = crew
        self._fusion = fusion
        self._slots = tuple(slots)
        self._buckets = tuple(buckets)
        self._plan = execution
        self._device = device
        before = device.memory_bytes()
        self.rows = buckets[0].samples // crew.members[0].samples_per_row
        """The most rows that fit."""
        shape = (self.rows, len(crew.members))
        self._weights_host, self._weights = device.staging(shape, torch.float32)
        self._counts_host, self._counts = device.staging(shape, torch.int32)
        self._ticket_host, self._ticket = device.staging((1,), torch.int64)
        self._arrivals = [device.staging((1,), torch.int64)[0] for _ in crew.members]
        self._arrived = [arrival.numpy() for arrival in self._arrivals]
        self._fused_host: list[Tensor] = []
        self.written = device.event()
        """When the host had written the rows of the last flight, and the graph could begin."""
        # Once as it is, for buffers and libraries want to be made before a capture begins.
        reason = device.find_sync(execution.copy, self._work)
        if reason:
            raise CannotCapture(f"the fusion waits for the device: {reason}")
        try:
            self._graph = device.capture(execution.copy, self._work, device.graph_pool())
        except Exception as error:
            raise InvalidEnsemble(f'plan: capturing whole flights broke off ({error}); set execution = "streams"') from error
        self.device_bytes = max(0, device.memory_bytes() - before)
        """The device memory that the capture and its buffers take."""

    def capture_again(self, crew: "Crew", fusion: CapturedFusion) -> "FlightCapture":
        """Capture the same flight with another fusion; nothing may be in the air. Raises as making one does."""
        return FlightCapture(crew, fusion, self._slots, self._buckets, self._plan, self._device)

    def launch(self, runs: Sequence["Run"], weights: Tensor, version: "FusionVersion") -> None:
        """Write the rows of `runs` to their places and replay; `weights` is float32 [rows, members]."""
        self._fusion.become(version, self._plan.copy)
        ticket = int(self._ticket_host[0]) + 1
        self._ticket_host[0] = ticket
        self._counts_host.zero_()
        self._weights_host[: len(weights)] = weights
        for run, slot, bucket, arrived in zip(runs, self._slots, self._buckets, self._arrived, strict=True):
            several = run.member.samples_per_row
            slot.write(run.samples, bucket, [row * several for row in run.rows], is_fed=True)
            self._counts_host[list(run.rows), run.member.index] = several
            run.fly_captured(slot.host_outputs[: bucket.samples], TicketEvent(arrived, ticket))
        self._plan.copy.record(self.written)
        self._plan.copy.run(self._graph.replay)

    def read_fused(self, rows: int) -> FusionResult:
        """Copy the fused output of the first `rows` rows from the buffers, once the flight has landed."""
        return FusionResult(*(part[:rows].clone() for part in self._fused_host))

    def _work(self) -> list[Tensor]:
        """Do what a flight does; every lane forks from the copy lane, where the capture begins, and joins it again."""
        root, device = self._plan.copy, self._device
        for slot, bucket in zip(self._slots, self._buckets, strict=True):
            slot.copy_in(bucket, is_fed=True)
        for host, twin in (
            (self._weights_host, self._weights),
            (self._counts_host, self._counts),
            (self._ticket_host, self._ticket),
        ):
            if host is not twin:
                twin.copy_(host, non_blocking=True)
        staged = device.event()
        root.record(staged)
        outputs: list[list[Tensor]] = []
        done = [device.event() for _ in self._crew.members]
        for member in self._crew.members:
            lane = self._plan.members[member.index]
            lane.wait_for(staged)
            for feeder in member.feeders:
                lane.wait_for(done[feeder])
            lane.run(partial(self._compute, member, outputs))
            lane.record(done[member.index])
            root.wait_for(done[member.index])
        by_row = [
            all_of_it[0] if member.samples_per_row == 1 else all_of_it[0].unflatten(0, (self.rows, member.samples_per_row))
            for member, all_of_it in zip(self._crew.members, outputs, strict=True)
        ]
        fused = self._fusion.module(by_row, self._weights, self._counts)
        parts = [fused.prediction, fused.weights, fused.disagreement, fused.present]
        if not self._fused_host:
            self._fused_host = [device.staging(tuple(part.shape), part.dtype)[0] for part in parts]
        for host, part in zip(self._fused_host, parts, strict=True):
            host.copy_(part, non_blocking=True)
        return [*(output for all_of_it in outputs for output in all_of_it), *parts]

    def _compute(self, member: "Member", outputs: list[list[Tensor]]) -> None:
        """Compute one member behind those that feed it, and let a ticket travel behind its output, on the same lane."""
        slot, bucket = self._slots[member.index], self._buckets[member.index]
        for index in member.feeders:
            feeder = self._crew.members[index]
            feed = feeder.feed(self._slots[index], self._buckets[index], outputs[index])
            member.take_feed(slot, index, feed, bucket.samples)
        outputs.append(member.compute_all(slot, bucket))
        slot.copy_out(outputs[-1][0])
        self._arrivals[member.index].copy_(self._ticket, non_blocking=True)

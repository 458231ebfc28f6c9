"""Batches: requests under way together, from staging to completion.

    copy in ──┬─ staged ──► member stream A ──┬─ done ──► fusion ──► completed
              └─ staged ──► member stream B ──┘

A batch is written once for both executions: which stream does what is all that differs. It owns its staging buffers and its
requests' inputs until it ends, also when a member fails, a launch breaks off half-way or every caller has gone away.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..device import Device, Execution, Stream
from ..errors import TwinferError
from ..fusion import FusionResult
from ..types import PartialResult, Request
from .buffers import FusionBuffers, copy_result_out
from .fusion_versions import FusionVersion
from .gather import Gatherer
from .member import Member
from .run import MemberRun

logger = logging.getLogger(__name__)

Excluded = Mapping[tuple[int, int], TwinferError]
"""By (request index, member index): why a member does not take part for a request that gives it samples."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Which stream does what; `fusion` is None where each batch uses the one of its fusion buffers."""

    execution: Execution
    copy: Stream
    members: tuple[Stream, ...]
    fusion: Stream | None


class Batch:
    """One batch under way. Formed by `Ensemble.form_batch`, launched by the launch thread, complete once `completed` is done."""

    def __init__(
        self, requests: Sequence[Request], runs: Sequence[MemberRun], excluded: Excluded, members: Sequence[Member],
        version: FusionVersion, streams: Streams, fusion_buffers: FusionBuffers, device: Device,
    ) -> None:  # fmt: skip
        """Take over the requests and the buffers of `runs`; `version` fuses all of them, on the device and on the host."""
        self.requests = tuple(requests)
        self.runs = tuple(runs)
        self.run_of = {run.member.index: run for run in runs}
        self.excluded = excluded
        self.members = members
        self.version = version
        self.execution = streams.execution
        self.fusion_buffers = fusion_buffers
        self.started, self.completed = device.event(), device.event()
        self.number = 0
        self.scheduled_at = self.launched_at = self.launch_ended_at = 0.0
        self.outputs_lock = threading.Lock()
        """Held while host outputs are read for late requests, and while buffers are released. Never by the event loop."""
        self.is_completing = False
        """Whether a completion thread reads the outputs: from then on no buffers are released before the batch ends."""
        self.has_ended = False
        self._index_of = {id(request): index for index, request in enumerate(self.requests)}
        self._streams = streams
        self._fusion_stream = streams.fusion or fusion_buffers.stream
        self._device = device
        self._gatherer = Gatherer(self.requests, self.run_of, members, version)
        self._starting = threading.Lock()
        self._result: FusionResult | None = None
        self._is_result_void = False

    # --- launching: the launch thread -----------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Queue the whole batch and return at once (on inline streams: when it is complete)."""
        self.launched_at = time.monotonic()
        copy = self._streams.copy
        copy.record(self.started)
        for run in self.runs:
            # What goes to another device is copied on the member's own stream there.
            run.stage(copy if run.member.device is self._device else self._streams.members[run.member.index])
        for run in self.runs:
            stream = self._streams.members[run.member.index]
            with self._starting:
                is_free, run.stream = run.stream is None, run.stream or stream
            if is_free:  # else the watchdog has moved it
                run.queue(stream)
        fusion = self._fusion_stream
        for run in self.runs:
            fusion.wait_event(run.done)
        fusion.submit(self._fuse)
        fusion.record(self.completed)
        self.launch_ended_at = time.monotonic()

    def move(self, streams: Sequence[Stream]) -> None:
        """Queue the members that wait for the launching thread, which is stuck in another member, on `streams` of their own.

        The watchdog's, for inline streams only: queueing on the others never waits. Calling it again is safe.
        """
        for run in self.runs:
            with self._starting:  # held until `done` is recorded, which the launching thread then relies upon
                if run.stream is None and run.staged.is_recorded:
                    run.stream = streams[run.member.index]
                    run.queue(run.stream)

    def break_off(self, error: Exception) -> None:
        """End a batch whose launch raised half-way: wait for the streams already used, then fail the members that were not done."""
        logger.error("a batch broke off: %s", error, exc_info=error)
        self._is_result_void = True
        streams = (self._streams.copy, *(run.stream for run in self.runs if run.stream is not None), self._fusion_stream)
        try:
            for stream in dict.fromkeys(streams):
                # Not the batch's own events: the launch may have broken off before they were recorded.
                settled = self._device.event()
                stream.record(settled)
                settled.wait()
            done = [run.has_output for run in self.runs]
        except Exception:  # a device that is lost cannot be waited for either; nothing on it will ever touch the buffers again
            logger.exception("the streams cannot be waited for")
            done = [False for _ in self.runs]
        for run, is_done in zip(self.runs, done, strict=True):
            if not is_done and run.has_answered:
                run.fault = f"the batch broke off: {type(error).__name__}; the server's log has it"
                run.fail(run.fault)

    def _fuse(self) -> None:
        """Fuse all requests on the fusion stream and copy the result to the host."""
        buffers, count = self.fusion_buffers, len(self.requests)
        try:
            self._gatherer.write_indices(buffers)
            buffers.copy_in()
            outputs = self._gatherer.gather_on_device(buffers)
            graph = self.version.find_graph(buffers, count)
            if graph is None:
                weights, counts = buffers.device_weights[:count], buffers.device_counts[:count]
                self._result = copy_result_out(self.version.fuse(outputs, weights, counts))
            else:
                for there, output in zip(buffers.graph_inputs, outputs, strict=True):
                    there[:count].copy_(output, non_blocking=True)
                graph.graph.replay()
                self._result = graph.result.first(count)
        except Exception:  # the requests then get what `fuse` on the host can still do for them
            logger.exception("the fusion raised")

    # --- what has come of it: any thread -----------------------------------------------------------------------------------------

    @property
    def is_launched(self) -> bool:
        """Whether the launching thread has queued all of it."""
        return self.launch_ended_at > 0

    @property
    def done_members(self) -> frozenset[int]:
        """The indexes of the members that are done by now."""
        return frozenset(run.member.index for run in self.runs if run.done.is_done())

    @property
    def result(self) -> FusionResult | None:
        """The fused result on the host, once the batch is complete; None if it is void, or the fusion raised."""
        return None if self._is_result_void else self._result

    def fuse(self, indices: Sequence[int], without: int | None = None) -> FusionResult:
        """Fuse the requests with these indices on the host, from the members that have answered; never waits for the device.

        The member with the index `without` is taken for absent: what would the others have said?
        """
        with torch.inference_mode():
            return self._gatherer.fuse_on_host(indices, without)

    def holds(self, request: Request) -> bool:
        """Whether the request is in this batch."""
        return id(request) in self._index_of

    def index_of(self, request: Request) -> int:
        """Return the request's index in this batch."""
        return self._index_of[id(request)]

    def keep_done_outputs(self) -> list[MemberRun]:
        """Copy what done members computed out of their staging buffers, and return their runs, which need these no more.

        What the fusion on the device makes of the buffers is void then: the batch is fused on the host in the end. Never waits.
        """
        if not self.outputs_lock.acquire(blocking=False):
            return []
        try:
            if self.is_completing:
                return []
            awaited = {index for run in self.runs if not run.done.is_done() for index in run.upstream}
            runs = [run for run in self.runs if run.done.is_done() and not run.is_released and run.member.index not in awaited]
            for run in runs:
                run.keep_output()
                run.is_released = self._is_result_void = True
            return runs
        finally:
            self.outputs_lock.release()

    def partial_result(self, request: Request, member: int) -> PartialResult:
        """Return what a member gave for a request, for the request's next batch."""
        index, run = self.index_of(request), self.run_of.get(member)
        error = self.excluded.get((index, member)) or (run.errors.get(index) if run else None)
        if run is None or error is not None or index not in run.first:
            return PartialResult(None, error)
        return PartialResult(run.output_of(index), None, run.device_seconds, run.solo_seconds, run.used_cuda_graph)

    @property
    def is_spread(self) -> bool:
        """Whether some of its members are on another device than the fusion."""
        return any(run.member.device is not self._device for run in self.runs)

    @property
    def join_seconds(self) -> float | None:
        """The time from fork to join: the first member's start to the last one's end. None unless all ran to their end at once.

        Of members on several devices, whose clocks cannot be compared, the whole batch; it must be complete.
        """
        if not self.runs or not all(run.is_whole for run in self.runs):
            return None
        if self.is_spread:
            return self.completed.seconds_since(self.started) if self.completed.is_done() else None
        fork = self.runs[0].started
        starts = [run.started.seconds_since(fork) for run in self.runs]
        ends = [run.done.seconds_since(fork) for run in self.runs]
        return max(ends) - min(starts)

    @property
    def overlap_ratio(self) -> float | None:
        """The sum of the members' solo latencies over the time from fork to join; None if fewer than two ran to their end."""
        seconds, solo = self.join_seconds, sum(run.solo_seconds for run in self.runs)
        return solo / seconds if seconds and solo and len(self.runs) > 1 else None

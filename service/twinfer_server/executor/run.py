"""Runs: one member's part in a batch, from its staging buffers to its outputs."""

import itertools
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Stream
from ..errors import MemberFailed, TwinferError
from ..types import Request
from .buffers import StagingBuffers
from .member import Member

logger = logging.getLogger(__name__)


class MemberRun:
    """One member's part in a batch.

    `indices` are those of the batch's requests that give the member samples, in the order of the samples; by such an index, `first`
    says which sample is the request's first and `count` how many it has. The outputs are real once `done` is.
    """

    def __init__(self, member: Member, buffers: StagingBuffers, indices: Sequence[int], requests: Sequence[Request]) -> None:
        """Take the requests with the indices `indices` of a batch's `requests`; the run owns `buffers` until the batch ends."""
        self.member = member
        self.buffers = buffers
        self.indices = tuple(indices)
        self.samples = [requests[index].samples[member.index] for index in self.indices]
        counts = [len(samples[0]) for samples in self.samples]
        self.count = dict(zip(self.indices, counts, strict=True))
        self.first = dict(zip(self.indices, itertools.accumulate(counts, initial=0), strict=False))
        self.total = sum(counts)
        self.bucket = member.bucket(self.samples)
        self.solo_seconds = 0.0
        self.staged, self.started, self.done = (member.device.event() for _ in range(3))
        self.upstream: Mapping[int, MemberRun] = {}
        """By member index, the runs of the same batch whose outputs it takes; empty where it computes on what is staged."""
        self.stream: Stream | None = None
        """The one stream that computes it, once a thread has taken the run for that."""
        self.outputs: Sequence[Tensor] = ()
        """On the device: the output that counts and the extra ones, float32 [samples, ...]."""
        self.host_output: Tensor | None = None
        self.error: TwinferError | None = None
        self.is_blocked = False
        """Whether it failed only because an upstream member did."""
        self.is_released = False
        """Whether its staging buffers belong to another batch again."""

    @property
    def has_output(self) -> bool:
        """Whether the member has answered; never waits."""
        return self.done.is_done() and self.error is None

    @property
    def device_seconds(self) -> float | None:
        """The time from the member's start to its end beside whatever else ran; None until its end, or if it never began."""
        if not (self.done.is_done() and self.started.is_recorded):
            return None
        return self.done.seconds_since(self.started)

    @property
    def used_cuda_graph(self) -> bool:
        """Whether a graph is replayed for the member."""
        return self.bucket in self.buffers.graphs

    def stage(self, copy_stream: Stream) -> None:
        """Write the samples into the staging buffers and queue their copy to the device."""
        skips = bool(self.upstream)
        self.buffers.write(self.samples, self.bucket, skips_upstream=skips)
        copy_stream.submit(lambda: self.buffers.copy_in(self.bucket, skips_upstream=skips))
        copy_stream.record(self.staged)

    def queue(self, stream: Stream) -> None:
        """Queue the member's work on `stream`, behind the copy and its upstream members, between its events."""
        stream.wait_event(self.staged)
        for run in self.upstream.values():
            stream.wait_event(run.done)
        stream.record(self.started)
        stream.submit(self._compute)
        stream.record(self.done)

    def output_of(self, index: int) -> NDArray[np.float32]:
        """Copy the output for the request with the index `index`, float32 [samples, ...]; the member must have answered."""
        assert self.host_output is not None
        first = self.first[index]
        values: NDArray[np.float32] = self.host_output[first : first + self.count[index]].numpy()
        return values.copy()  # not a view of staging memory

    def keep_output(self) -> None:
        """Copy the output out of the staging buffers, so that these can be released before the batch ends."""
        if self.host_output is not None:
            self.host_output = self.host_output.clone()

    def _compute(self) -> None:
        """Compute the member, or replay its graph; whatever it raises is its requests' failure alone. Runs on the stream."""
        try:
            if not self._take_upstream():
                return
            graph = self.buffers.graphs.get(self.bucket)
            if graph is not None:
                graph.graph.replay()
                outputs, host_output = graph.outputs, graph.host_output
            else:
                outputs = tuple(self.member.compute(self.buffers, self.bucket))
                host_output = self.buffers.copy_out(outputs[0]) if self.member.is_fused else None
            self.outputs = [output[: self.total] for output in outputs]
            self.host_output = None if host_output is None else host_output[: self.total]
        except Exception as error:
            logger.exception("member %s raised", self.member.name)
            self.error = MemberFailed(f"the member raised {type(error).__name__}; the server's log has it", member=self.member.name)

    def _take_upstream(self) -> bool:
        """Copy what upstream members computed into the staging buffers; False, with the error, where one of them failed."""
        for index, run in self.upstream.items():
            if run.error is not None:
                text = f"it takes the output of the member {run.member.name}, which failed: {run.error.text}"
                self.error, self.is_blocked = MemberFailed(text, member=self.member.name), True
                return False
            picked = self._pick(run)
            extra = (values if picked is None else values.index_select(0, picked) for values in run.outputs[1:])
            outputs = dict(zip(run.member.extra_outputs, extra, strict=True))
            self.member.take_upstream(self.buffers, index, outputs, self.total)
        return True

    def _pick(self, run: "MemberRun") -> Tensor | None:
        """List which samples of an upstream run are this one's, int64 [samples] on its device; None where all are, in order."""
        if run.indices == self.indices:
            return None
        wanted = [sample for index in self.indices for sample in range(run.first[index], run.first[index] + run.count[index])]
        device = run.outputs[0].device
        host = torch.tensor(wanted, pin_memory=device.type == "cuda")
        return host.to(device, non_blocking=True)

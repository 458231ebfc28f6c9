"""Runs: one member's part in a batch, from its staging buffers to its outputs."""

import itertools
import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Stream
from ..errors import MemberFailed, TwinferError
from ..types import Request
from .buffers import StagingBuffers
from .halves import TIME_FACTOR, TIME_SECONDS, compute_in_halves
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
        self.requests = requests
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
        self.errors: dict[int, TwinferError] = {}
        """By request index, why the member has no output for it."""
        self.fault: str | None = ""
        """What the member itself did wrong; None where it is not to be judged, for all that failed is the requests' doing."""
        self.retries = 0
        """How many parts were computed again, after it had raised on the whole."""
        self.is_released = False
        """Whether its staging buffers belong to another batch again."""

    @property
    def has_output(self) -> bool:
        """Whether the member has answered any of the requests; never waits."""
        return self.done.is_done() and self.has_answered

    @property
    def is_whole(self) -> bool:
        """Whether the member has answered all of the requests together, at the first try; never waits."""
        return self.done.is_done() and not self.errors and not self.retries

    @property
    def has_answered(self) -> bool:
        """Whether there is a request for which the member has not failed; it is told before `done`."""
        return len(self.errors) < len(self.indices)

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

    def fail(self, text: str, indices: Sequence[int] | None = None) -> None:
        """Have the requests with these indices (None: all) fail, but for those that have already."""
        failed = dict.fromkeys(self.indices if indices is None else indices, MemberFailed(text, member=self.member.name))
        self.errors = failed | self.errors

    def _compute(self) -> None:
        """Compute the member, or replay its graph; whatever it raises is its requests' failure alone. Runs on the stream."""
        group: Sequence[int] = ()
        try:
            self._take_upstream()
            group = [index for index in self.indices if index not in self.errors]
            if group:
                self._compute_whole(group)
            else:
                self.fault = None
        except Exception as error:
            if group and not self.used_cuda_graph:
                self._compute_again(group, error)
            else:  # a replay runs no Python and takes no memory: no request's doing
                self._give_up(error)

    def _compute_whole(self, group: Sequence[int]) -> None:
        """Compute the requests with these indices together."""
        graph = self.buffers.graphs.get(self.bucket)
        if graph is not None:
            graph.graph.replay()
            self.outputs = [output[: self.total] for output in graph.outputs]
            self.host_output = None if graph.host_output is None else graph.host_output[: self.total]
        elif len(group) < len(self.indices) or self.member.is_deterministic:
            self._compute_part(group)
            self._copy_out()
        else:
            self.outputs = self.member.compute(self.buffers, self.bucket)
            self._copy_out()

    def _compute_part(self, group: Sequence[int]) -> None:
        """Compute the requests with these indices without the others, into their places of the outputs.

        Where it is deterministic each sample keeps its place in the one bucket: the first of them stands in for all that is not
        theirs, what earlier batches left included.
        """
        own = [sample for index in group for sample in range(self.first[index], self.first[index] + self.count[index])]
        theirs = set(own)
        places = [sample if sample in theirs else own[0] for sample in range(self.bucket.samples)]
        device = self.member.device.torch_device
        picked = _make_index(own, device)
        if self.member.is_deterministic:
            outputs = self.member.compute(self.buffers, self.bucket, _make_index(places, device))
            outputs = [output.index_select(0, picked) for output in outputs]
        else:
            outputs = self.member.compute(self.buffers, self.bucket, picked)
        self.outputs = self.outputs or [output.new_zeros((self.total, *output.shape[1:])) for output in outputs]
        for there, output in zip(self.outputs, outputs, strict=True):
            there.index_copy_(0, picked, output)

    def _copy_out(self) -> None:
        """Copy the output that counts to the host."""
        self.host_output = self.buffers.copy_out(self.outputs[0]) if self.member.is_fused and self.outputs else None

    def _compute_again(self, group: Sequence[int], error: Exception) -> None:
        """Compute the requests with these indices in halves, after the member has raised `error` on all of them together."""
        name, ends = self.member.name, time.monotonic() + TIME_FACTOR * self.solo_seconds + TIME_SECONDS

        def is_over(part: Sequence[int]) -> bool:
            now = time.monotonic()
            return now > ends or not any(self.requests[index].is_awaited(now) for index in part)

        self.outputs = ()
        found = compute_in_halves(
            group, error, self._compute_part, self.member.compute_own, lambda: bool(self.member.device.find_loss()), is_over
        )
        self.retries = found.computed
        if found.fault is None:
            try:
                self._copy_out()
            except Exception as loss:
                found.fault = loss
        if found.fault is not None:
            self._give_up(found.fault)
            return
        for index, raised in found.alone.items():
            self.fail(f"on the input of this request alone {_name(raised)}", [index])
        for index, raised in found.left.items():
            self.fail(f"on the inputs of this request and others, which no time was left to tell apart, {_name(raised)}", [index])
        if not self.has_answered:
            self.fault = None
        failed = len(found.alone) + len(found.left)
        text = "member %s raised on %d requests together, and in parts on %d of them: %s: %s"
        logger.warning(text, name, len(group), failed, type(error).__name__, error)
        logger.debug("what member %s raised", name, exc_info=error)

    def _give_up(self, error: Exception) -> None:
        """Have all requests fail of what the member itself raised."""
        logger.error("member %s raised", self.member.name, exc_info=error)
        self.fault = _name(error)
        self.fail(self.fault)

    def _take_upstream(self) -> None:
        """Copy what upstream members computed into the staging buffers; requests at which one of them failed, fail."""
        for index, run in self.upstream.items():
            for failed in [request for request in self.indices if request in run.errors]:
                self.fail(f"it takes the output of the member {run.member.name}, which failed: {run.errors[failed].text}", [failed])
            if not run.outputs:
                continue
            picked = self._pick(run)
            extra = (values if picked is None else values.index_select(0, picked) for values in run.outputs[1:])
            outputs = dict(zip(run.member.extra_outputs, extra, strict=True))
            self.member.take_upstream(self.buffers, index, outputs, self.total)

    def _pick(self, run: "MemberRun") -> Tensor | None:
        """List which samples of an upstream run are this one's, int64 [samples] on its device; None where all are, in order."""
        if run.indices == self.indices:
            return None
        wanted = [sample for index in self.indices for sample in range(run.first[index], run.first[index] + run.count[index])]
        return _make_index(wanted, run.outputs[0].device)


def _make_index(samples: Sequence[int], device: torch.device) -> Tensor:
    """Make an index of samples, int64 [samples], on a device without waiting for it."""
    host = torch.tensor(samples, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def _name(error: Exception) -> str:
    """Say to callers what a member raised: what it says may tell of paths, or of other callers' inputs."""
    return f"the member raised {type(error).__name__}; the server's log has it"

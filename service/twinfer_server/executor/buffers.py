"""Staging buffers: the pinned host and the device memory that one batch uses at a time, of a member and of the fusion.

On a CPU the two sides are one tensor, and copying between them is nothing. A batch takes buffers when it is formed and is their
only owner until it releases them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device import Device, Graph, Stream
from ..fusion import FusionResult
from ..inputs import BufferSpec
from ..types import Samples
from .latency import Bucket

BUFFER_SETS = 2
"""While one batch computes from a set, the next one is written into the other."""


@dataclass(frozen=True, slots=True)
class MemberGraph:
    """A member at a bucket in one set of staging buffers: replaying `graph` writes the same tensors each time.

    `outputs` are the output that counts and the extra ones, `host_output` the copy of the first on the host, or None.
    """

    graph: Graph
    outputs: tuple[Tensor, ...]
    host_output: Tensor | None


class StagingBuffers:
    """One set of a member's staging buffers: for each input tensor a host side, written by requests, and a device side."""

    def __init__(self, device: Device, specs: Sequence[BufferSpec], max_samples: int) -> None:
        """Make room for `max_samples` samples of every tensor that `specs` describe."""
        self.graphs: dict[Bucket, MemberGraph] = {}
        self._specs = tuple(specs)
        pairs = [device.buffers((max_samples, *spec.shape), spec.dtype) for spec in specs]
        self._host = [host for host, _ in pairs]
        self._device = [there for _, there in pairs]
        self._host_arrays = [host.numpy() for host in self._host]
        self._is_shared = self._host[0] is self._device[0]
        self._max_samples = max_samples
        self._host_outputs = torch.empty(0)

    def make_host_outputs(self, device: Device, output_shape: tuple[int, ...]) -> None:
        """Make the pinned buffer that outputs are copied to; needed where host and device do not share memory."""
        if not self._is_shared:
            self._host_outputs = device.buffers((self._max_samples, *output_shape), torch.float32)[0]

    @property
    def device_bytes(self) -> int:
        """The device memory of the buffers."""
        return sum(there.untyped_storage().nbytes() for there in self._device)

    def write(self, samples: Sequence[Samples], bucket: Bucket, *, skips_upstream: bool = False) -> None:
        """Write samples one behind the other into the host side, ragged ones padded to the bucket's tokens.

        With `skips_upstream` the tensors that come from upstream members are left to `receive`.
        """
        for position, (spec, array) in enumerate(zip(self._specs, self._host_arrays, strict=True)):
            if skips_upstream and spec.is_upstream:
                continue
            if spec.is_ragged:
                array[: bucket.samples, : bucket.tokens] = spec.fill
            first = 0
            for sample in samples:
                values = sample[position]
                last = first + len(values)
                if spec.is_ragged:
                    array[first:last, : values.shape[1]] = values
                else:
                    array[first:last] = values
                first = last

    def copy_in(self, bucket: Bucket, *, skips_upstream: bool = False) -> None:
        """Copy the host side to the device side, in full length: torch copies cut rows through memory that is not pinned."""
        if self._is_shared:
            return
        for spec, host, there in zip(self._specs, self._host, self._device, strict=True):
            if not (skips_upstream and spec.is_upstream):
                there[: bucket.samples].copy_(host[: bucket.samples], non_blocking=True)

    def receive(self, position: int, values: Tensor) -> None:
        """Copy what an upstream member computed into the tensor at `position`, on the device."""
        self._device[position][: len(values)].copy_(values, non_blocking=True)

    def inputs(self, bucket: Bucket) -> list[Tensor]:
        """Return the device side, cut to the bucket."""
        return [
            there[: bucket.samples, : bucket.tokens] if spec.is_ragged else there[: bucket.samples]
            for spec, there in zip(self._specs, self._device, strict=True)
        ]

    def copy_out(self, output: Tensor) -> Tensor:
        """Copy a member's output to the host; the values are real once the event recorded next is done."""
        if self._is_shared:
            return output
        return self._host_outputs[: len(output)].copy_(output, non_blocking=True)


@dataclass(frozen=True, slots=True)
class FusionGraph:
    """One version of the fusion at a batch size, on the tensors of one set; `result` is on the host, written by each replay."""

    graph: Graph
    result: FusionResult


class FusionBuffers:
    """What the fusion of one batch reads beside the members' outputs, and its stream.

    The host writes NumPy arrays: `weights` float32 [requests, members]; `counts` int32 [requests, members], how many samples each
    member has for a request, 0 where it is absent; `starts` int64 [members, requests], where they begin in the member's output;
    `partials` by member, float32 [requests, ...], what a cascade brings from earlier batches. The device sides are tensors.
    """

    def __init__(self, device: Device, shapes: Sequence[tuple[int, ...]], max_requests: int, *, has_partials: bool) -> None:
        """Make room for `max_requests` requests and members whose samples have the output shapes `shapes`."""
        self.stream = device.stream("fusion")
        self.capture_stream: Stream | None = None
        """What versions are captured on, for work that a batch queued meanwhile on the same stream would be captured too."""
        self.graph_inputs: list[Tensor] = []
        """The device tensors that a graph reads the members' outputs from, float32 [requests, ...]; empty without graphs."""
        pairs = [
            device.buffers((max_requests, len(shapes)), torch.float32),
            device.buffers((max_requests, len(shapes)), torch.int32),
            device.buffers((len(shapes), max_requests), torch.int64),
            *(device.buffers((max_requests, *shape), torch.float32) for shape in shapes if has_partials),
        ]
        self._copies = [(host, there) for host, there in pairs if host is not there]
        arrays = [host.numpy() for host, _ in pairs]
        self.weights: NDArray[np.float32] = arrays[0]
        self.counts: NDArray[np.int32] = arrays[1]
        self.starts: NDArray[np.int64] = arrays[2]
        self.partials: list[NDArray[np.float32]] = arrays[3:]
        self.device_weights, self.device_counts, self.device_starts, *self.device_partials = [there for _, there in pairs]

    def prepare_capture(self, device: Device, shapes: Sequence[tuple[int, ...]]) -> Stream:
        """Make the tensors that graphs read the members' outputs from, once; return the stream to capture on."""
        if self.capture_stream is not None:
            return self.capture_stream
        self.capture_stream = device.stream("capture")
        self.graph_inputs = [device.buffers((len(self.weights), *shape), torch.float32)[1] for shape in shapes]
        return self.capture_stream

    def copy_in(self) -> None:
        """Copy all of it to the device, in full: it is little."""
        for host, there in self._copies:
            there.copy_(host, non_blocking=True)


def copy_result_out(result: FusionResult) -> FusionResult:
    """Copy a result to pinned host memory; the values are real once the event recorded next is done."""
    if not result.prediction.is_cuda:
        return result
    # torch keeps pinned memory that is free again, so nothing is allocated for long.
    return FusionResult(
        *(torch.empty_like(part, device="cpu", pin_memory=True).copy_(part, non_blocking=True) for part in result.parts())
    )

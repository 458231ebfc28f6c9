"""Gathering: from the members' outputs, sample by sample, to what the fusion takes, request by request.

For every member the fusion takes float32 [requests, ...] or, where a request may give it several samples, [requests, samples, ...];
and int32 [requests, members]: how many samples a member has for a request, 0 where it is absent. What an absent member's part
holds means nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..fusion import FusionResult
from ..types import Request
from .buffers import FusionBuffers
from .fusion_versions import FusionVersion
from .member import Member
from .run import MemberRun


class Gatherer:
    """Gathers what the runs of one batch give to its requests, for the device and for the host."""

    def __init__(
        self, requests: Sequence[Request], run_of: Mapping[int, MemberRun], members: Sequence[Member], version: FusionVersion
    ) -> None:  # fmt: skip
        """Take a batch's requests, its runs by member index, the ensemble's members and the version that fuses them."""
        self.requests = requests
        self.run_of = run_of
        self.members = members
        self.version = version

    def write_indices(self, buffers: FusionBuffers) -> None:
        """Write the weights, the counts and where samples begin, of all of a batch's requests, into the fusion's host buffers."""
        count = len(self.requests)
        buffers.weights[:count] = self._weights(range(count))
        for member in self.members:
            index, run = member.index, self.run_of.get(member.index)
            is_there = run is not None and bool(run.outputs)
            partials = self._index_member(member, range(count), buffers.starts[index], buffers.counts[:, index], is_there)
            for position, partial in enumerate(partials):
                buffers.partials[index][position] = partial[0]

    def gather_on_device(self, buffers: FusionBuffers) -> list[Tensor]:
        """Bring every member's output on the device into the order of the batch's requests; on the fusion stream."""
        device, count = buffers.device_weights.device, len(self.requests)
        outputs = []
        for member in self.members:
            index, run, sources, brought = member.index, self.run_of.get(member.index), [], 0
            if run is not None and run.outputs and member.is_fused:
                sources.append(run.outputs[0].to(device, non_blocking=True))
            if buffers.partials:
                brought = sum(request.partials[index].output is not None for request in self.requests if index in request.partials)
                sources += [buffers.device_partials[index][:brought]] if brought else []
            is_in_order = run is not None and not brought and not run.errors and run.indices == tuple(range(count))
            starts = None if is_in_order else buffers.device_starts[index, :count]
            outputs.append(_arrange(member, sources, starts, buffers.counts[:count, index], buffers.device_counts[:count, index]))
        return outputs

    def fuse_on_host(self, indices: Sequence[int], without: int | None) -> FusionResult:
        """Fuse the requests with these indices on the host, from the members that have answered; see `Batch.fuse`."""
        counts = np.zeros((len(indices), len(self.members)), dtype=np.int32)
        outputs = []
        for member in self.members:
            run, starts = self.run_of.get(member.index), np.zeros(len(indices), dtype=np.int64)
            is_there = run is not None and run.has_output and run.host_output is not None
            partials = self._index_member(member, indices, starts, counts[:, member.index], is_there)
            sources = [run.host_output] if is_there and run is not None and run.host_output is not None else []
            sources += [torch.from_numpy(partial) for partial in partials]
            column = counts[:, member.index]
            outputs.append(_arrange(member, sources, torch.from_numpy(starts), column, torch.from_numpy(column)))
        if without is not None:
            counts[:, without] = 0
        return self.version.fuse(outputs, torch.from_numpy(self._weights(indices)), torch.from_numpy(counts), on_host=True)

    def _weights(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return the requests' weights, float32 [requests, members]: their own, or those of the batch's version of the fusion."""
        weights = np.empty((len(indices), len(self.members)), dtype=np.float32)
        weights[:] = self.version.weights
        for position, index in enumerate(indices):
            own = self.requests[index].weights
            if own is not None:
                weights[position] = own
        return weights

    def _index_member(
        self, member: Member, indices: Sequence[int], starts: NDArray[np.int64], counts: NDArray[np.int32], takes_run: bool
    ) -> list[NDArray[np.float32]]:  # fmt: skip
        """Write where each request's samples of a member begin and how many there are; return the partial results behind the run's.

        `starts` int64 [requests], `counts` int32 [requests]; 0 and 0 where the member is absent.
        """
        run = self.run_of.get(member.index) if takes_run else None
        partials: list[NDArray[np.float32]] = []
        length = 0 if run is None else run.total
        for position, index in enumerate(indices):
            partial = self.requests[index].partials.get(member.index)
            if run is not None and index in run.first and index not in run.errors:
                starts[position], counts[position] = run.first[index], run.count[index]
            elif partial is not None and partial.output is not None:
                starts[position], counts[position] = length, len(partial.output)
                partials.append(partial.output)
                length += len(partial.output)
            else:
                starts[position] = counts[position] = 0
        return partials


def _arrange(
    member: Member, sources: Sequence[Tensor], starts: Tensor | None, counts: NDArray[np.int32], device_counts: Tensor
) -> Tensor:  # fmt: skip
    """Put samples in the order of the requests; `starts` None where they are in it already.

    A request without a sample borrows the first one; its count is 0, so nothing comes of it.
    """
    requests, several = len(counts), member.samples_per_request > 1
    if not sources:
        return torch.zeros((), device=device_counts.device).expand(requests, *((1,) if several else ()), *member.output_shape)
    output = sources[0] if len(sources) == 1 else torch.cat(list(sources))
    if not several:
        return output[:requests] if starts is None else output.index_select(0, starts)
    width = max(1, int(counts.max()))
    starts = device_counts.cumsum(0) - device_counts if starts is None else starts
    offsets = torch.minimum(torch.arange(width, device=output.device), (device_counts - 1).clamp(min=0).unsqueeze(1))
    picked = (starts.unsqueeze(1) + offsets).flatten()
    return output.index_select(0, picked).view(requests, width, *member.output_shape)

"""Cascades: one member looks at a request first, and the others only if it is not sure.

That makes two batches. When the first is complete the gate is read on the host; requests of which the first member is not sure
wait again, for the other members, and share their next batch with whatever else waits.
"""

from collections.abc import Mapping, Sequence

import torch

from ..types import Request, Samples
from .batch import Batch


class Cascade:
    """Which member is asked first, and for which requests the others are; the gate is that of the batch's fusion version."""

    def __init__(self, first: int) -> None:
        """Ask the member with the index `first` before the others."""
        self._first = first

    def first_members(self, samples: Mapping[int, Samples]) -> tuple[int, ...]:
        """List the members that look at a request first: the cascade's, or all where there is no input for that one."""
        return (self._first,) if self._first in samples else tuple(samples)

    def find_unsure(self, batch: Batch, indices: Sequence[int]) -> set[int]:
        """Find which of the requests with these indices the others must look at, too.

        These have members that have not been asked yet, and the first member's calibrated confidence - the probability of its best
        class - is below the gate, or it has not answered, or weighs nothing for them.
        """
        pending = [index for index in indices if batch.requests[index].pending_members()]
        run = batch.run_of.get(self._first)
        if not pending or run is None or not run.has_output:
            return set(pending)
        asked = [index for index in pending if index in run.first and index not in run.errors and self._weighs(batch, index)]
        if not asked:
            return set(pending)
        outputs = torch.cat([torch.from_numpy(run.output_of(index)) for index in asked])
        confidences = batch.version.host_fusion.member_prediction(self._first, outputs).amax(-1)
        # A confidence that is not finite is below every gate.
        is_sure = dict(zip(asked, (confidences >= batch.version.gate).tolist(), strict=True))
        return {index for index in pending if not is_sure.get(index, False)}

    def _weighs(self, batch: Batch, index: int) -> bool:
        """Whether the first member counts for a request at all: by its own weights, or by those of the batch's fusion."""
        own = batch.requests[index].weights
        return bool((batch.version.weights if own is None else own)[self._first] > 0)


def escalate(batch: Batch, request: Request, seconds: float) -> None:
    """Have a request ask the members that have not been asked yet, in its next batch; the one before took so many seconds."""
    members = request.pending_members()
    request.partials.update({index: batch.partial_result(request, index) for index in request.members})
    request.members = members
    request.earlier_seconds += seconds
    request.blocked_at = 0.0

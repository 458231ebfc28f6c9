"""Gathering: from the members' outputs, sample by sample, to what the fusion takes, row by row."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..types import Request
from .member import Member
from .moving import to_device
from .run import Run


def gather_outputs(
    rows: Mapping[int, Request], runs: Mapping[int, Run], members: Sequence[Member], device: torch.device
) -> tuple[list[Tensor], NDArray[np.int32]]:  # fmt: skip
    """Bring every member's output into the order of `rows` (by their number in the flight), on `device`.

    Gives one float32 tensor per member, [rows, ...] or, where a row may give it several samples, [rows, samples, ...]; and int32
    [rows, members]: how many samples a member has for a row, 0 where it is absent. What an absent member's part holds means
    nothing. On the host only members that have answered are there; on the device the join has seen to that.
    """
    counts = np.zeros((len(rows), len(members)), dtype=np.int32)
    outputs = [_gather(rows, member, runs.get(member.index), counts[:, member.index], device) for member in members]
    return outputs, counts


def _gather(
    rows: Mapping[int, Request], member: Member, run: Run | None, counts: NDArray[np.int32], device: torch.device
) -> Tensor:
    """Gather one member's output, and write into `counts`, int32 [rows], how many samples each row has."""
    source = None if run is None else run.output_on(device)
    if (
        source is not None
        and run is not None
        and member.samples_per_row == 1
        and run.rows == tuple(rows) == tuple(range(len(rows)))
    ):
        counts[:] = 1
        return source[: len(rows)]
    sources = [] if source is None else [source]
    starts = np.zeros(len(rows), dtype=np.int64)
    length = 0 if source is None else len(source)
    for place, (number, row) in enumerate(rows.items()):
        part = row.parts.get(member.index)
        if source is not None and run is not None and number in run.firsts:
            starts[place], counts[place] = run.firsts[number], run.sizes[number]
        elif part is not None and part.output is not None:
            starts[place], counts[place] = length, len(part.output)
            sources.append(to_device(torch.from_numpy(part.output), device))
            length += len(part.output)
    if not sources:
        several = (1,) if member.samples_per_row > 1 else ()
        return torch.zeros((), device=device).expand(len(rows), *several, *member.output_shape)
    output = sources[0] if len(sources) == 1 else torch.cat(sources)
    if member.samples_per_row == 1:
        # A row without a sample borrows the first one; its count is 0, so nothing comes of it.
        return output.index_select(0, to_device(torch.from_numpy(starts), device))
    places = np.arange(max(1, counts.max()))
    picked = starts[:, None] + np.minimum(places, np.maximum(counts[:, None] - 1, 0))
    return output.index_select(0, to_device(torch.from_numpy(picked.ravel()), device)).view(*picked.shape, *member.output_shape)

"""Cascades: one member looks at a row first, and the others only if it is not sure.

That makes two flights. When the first has landed the gate is read on the host; rows of which the first member is not sure wait
again, for the other members, and share their next flight with whoever else waits.
"""

from collections.abc import Mapping, Sequence

import torch

from ..types import Request, Samples
from .flight import Flight


class Cascade:
    """Who is asked first, and of which rows the others are asked too; the gate is that of the flight's version of the fusion."""

    def __init__(self, first: int) -> None:
        """Ask the member with the index `first` before the others."""
        self._first = first

    def first_crew(self, samples: Mapping[int, Samples]) -> tuple[int, ...]:
        """Give the members that look at a row first: the cascade's, or all where the row has no input for that one."""
        return (self._first,) if self._first in samples else tuple(samples)

    def find_unsure(self, flight: Flight, rows: Sequence[Request]) -> list[int]:
        """Find the places in `rows` of those that the others must look at, too.

        These are rows with members that nobody has asked yet, for which the first one's calibrated confidence - the probability of
        its best class - is below the gate, which it has not answered, or for which it weighs nothing.
        """
        pending = [place for place, row in enumerate(rows) if pending_members(row)]
        run = next((run for run in flight.runs if run.member.index == self._first), None)
        if not pending or run is None or not run.has_output:
            return pending
        asked = [place for place in pending if flight.number_of(rows[place]) in run.firsts and self._weighs(flight, rows[place])]
        outputs = [torch.from_numpy(run.sample_of(flight.number_of(rows[place]))) for place in asked]
        if not outputs:
            return pending
        version = flight.crew.version
        beliefs = version.host_fusion.member_prediction(self._first, torch.cat(outputs))
        # What is not finite is not sure.
        is_sure = dict(zip(asked, (beliefs.amax(-1) >= version.gate).tolist(), strict=True))
        return [place for place in pending if not is_sure.get(place, False)]

    def send_on(self, flight: Flight, row: Request, seconds: float) -> None:
        """Have a row that has landed wait for the members that nobody has asked yet; its flight took `seconds`."""
        crew = pending_members(row)
        row.parts.update({index: flight.part_of(row, index) for index in row.crew})
        row.crew = crew
        row.flown_seconds += seconds
        row.blocked_at = 0.0

    def _weighs(self, flight: Flight, row: Request) -> bool:
        """Whether the first member counts for the row at all: by its own weights, or by those of the flight's fusion."""
        weights = flight.crew.version.weights if row.weights is None else row.weights
        return bool(weights[self._first] > 0)


def pending_members(row: Request) -> tuple[int, ...]:
    """List the members that a row has input for and that nobody has asked, nor is asking now."""
    return tuple(index for index in row.samples if index not in row.crew and index not in row.parts)

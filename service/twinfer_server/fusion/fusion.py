"""The module that turns member outputs into the fused output: the same on the device and, for late rows, on the CPU."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .weights import renormalise

MAX_MAGNITUDE = 1e30
"""An output beyond it counts as not finite: differences of such numbers overflow fp32."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What the fusion says about each row of a flight; tensors on the fusion's device, not yet waited for.

    prediction: float32, by task; without meaning where nobody is present, or one of `Fusion.needs` is absent.
        classification [rows, classes], probabilities; multi_label [rows, labels], a probability each;
        embedding [rows, features]; tensor [rows, *shape];
        similarity [rows, compared, 2], cosine and probability, 0 beyond the row's own count;
        detection [rows, boxes, 6], x_min, y_min, x_max, y_max (0..1), score, class; highest score first, score 0 is no box.
    weights: float32 [rows, members], as they were used: 0 for the absent, summing to 1 over the present.
    disagreement: float32 [rows], 0..1; NaN where fewer than two members have weight, and for tasks that know no beliefs.
    present: bool [rows, members]; false for a member that was absent, or whose output for the row was not finite.
    """

    prediction: Tensor
    weights: Tensor
    disagreement: Tensor
    present: Tensor


@dataclass(frozen=True, slots=True)
class Votes:
    """What the voting members bring for some rows; one column for each of them, in the order of `Fusion.voters`.

    values: one float32 [rows, ...] per voter, as `Fusion.read` gives it; an absent voter's rows may hold anything.
    shares: float32 [rows, voters]; 0 for the absent, summing to 1 over the present, all 0 where nobody is.
    counts: int32 [rows, voters]; how many samples a voter has for the row, 0 for the absent.
    present: bool [rows, voters]; who is there.
    """

    values: Sequence[Tensor]
    shares: Tensor
    counts: Tensor
    present: Tensor


class Outcome(Protocol):
    """Who counts, and how much: all that an answer says of votes, of whatever kind they are."""

    @property
    def shares(self) -> Tensor:
        """float32 [rows, voters]."""
        ...

    @property
    def present(self) -> Tensor:
        """Bool [rows, voters]."""
        ...


class Fusion(nn.Module):
    """A fusion: whatever is fitted is a buffer of it, so that it moves, is copied and is saved as one thing.

    Weights are no buffer: they come with the rows, since any row may bring its own, and a second copy could differ.
    """

    def __init__(self, voters: Sequence[int], needs: Collection[int] = ()) -> None:
        """Fuse the members with the indexes `voters`; the others only feed members. Without one of `needs` there is no answer."""
        super().__init__()
        self.voters = tuple(voters)
        self.needs = frozenset(needs)

    @abstractmethod
    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Fuse the members' outputs, row by row, over the members that are present and finite.

        outputs: one float per member, as the member gave it: [rows, ...], or [rows, samples, ...] of one that may have several
        samples for a row. What lies beyond a row's own samples, or belongs to a member that does not vote, may be anything.
        weights: float32 [rows, members], finite, at least 0; renormalised here.
        samples: int32 (or bool) [rows, members]; how many samples each member has for the row, 0 where it is absent.
        """

    @abstractmethod
    def belief(self, member: int, output: Tensor) -> Tensor:
        """Turn a member's output, float [rows, ...], into its own calibrated prediction, in the form of the task's.

        For similarity it is the embedding itself.
        """

    def needed_by(self, members: Collection[int]) -> frozenset[int]:
        """Say without whom a row has no answer that has input for `members`, by index."""
        return self.needs

    def count_places(self, samples: Mapping[int, int]) -> int | None:
        """Say how many places of the prediction are a row's own, which has so many samples for each member; None: all of them."""
        return None

    def read(self, member: int, output: Tensor, count: Tensor) -> Tensor:
        """Turn a member's output into the float32 [rows, ...] that is fused; `count` is int32 [rows], its samples for each row.

        A row that holds NaN, an infinity or more than MAX_MAGNITUDE counts as absent.
        """
        return output.float()

    def hear(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Votes:
        """Gather what the voters bring; arguments as in `forward`."""
        counts = self._of_voters(samples.to(torch.int32))
        values = [self.read(member, outputs[member], counts[:, place]) for place, member in enumerate(self.voters)]
        counts = counts * torch.stack([is_finite(value) for value in values], dim=-1)
        present = counts > 0
        return Votes(values, renormalise(self._of_voters(weights), present), counts, present)

    def conclude(self, votes: Outcome, members: int, prediction: Tensor, disagreement: Tensor | None = None) -> Fused:
        """Put an answer together for an ensemble of `members`; without `disagreement`, float32 [rows], it is NaN."""
        if disagreement is None:
            disagreement = votes.shares.new_full(votes.shares.shape[:1], torch.nan)
        return Fused(prediction, self._of_all(votes.shares, members), disagreement, self._of_all(votes.present, members))

    def _of_voters(self, values: Tensor) -> Tensor:
        """Pick the voters' columns of [rows, members]; by slices, for a list of indexes would have to travel to the device."""
        if self.voters == tuple(range(values.shape[1])):
            return values
        return torch.stack([values[:, member] for member in self.voters], dim=-1)

    def _of_all(self, values: Tensor, members: int) -> Tensor:
        """Put the columns of [rows, voters] where they stand among all members, with 0 for the others."""
        if self.voters == tuple(range(members)):
            return values
        nothing = torch.zeros_like(values[:, 0])
        places = {member: place for place, member in enumerate(self.voters)}
        return torch.stack([values[:, places[member]] if member in places else nothing for member in range(members)], dim=-1)


def is_finite(values: Tensor) -> Tensor:
    """Say which rows of float32 [rows, ...] hold only finite numbers: bool [rows]. A NaN compares as false."""
    return values.abs().reshape(len(values), -1).amax(-1).le(MAX_MAGNITUDE)

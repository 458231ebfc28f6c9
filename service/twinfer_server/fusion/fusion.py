"""The module that turns member outputs into the fused output: the same on the device and, for late requests, on the CPU."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_MAGNITUDE = 1e30
"""An output beyond it counts as not finite: differences of such numbers overflow fp32."""
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class FusionResult:
    """What the fusion says about each request of a batch; tensors on the fusion's device, not yet waited for.

    prediction: float32, by task; without meaning where no member is present, or one of `Fusion.needs` is absent.
        classification [requests, classes], probabilities; multi_label [requests, labels], a probability each;
        embedding [requests, features]; tensor [requests, *shape];
        similarity [requests, compared, 2], cosine and probability, 0 beyond the request's own count;
        detection [requests, boxes, 6], x_min, y_min, x_max, y_max (0..1), score, class; highest score first, score 0 is no box.
    weights: float32 [requests, members], as they were used: 0 for the absent, summing to 1 over the present.
    disagreement: float32 [requests], 0..1; NaN where fewer than two members have weight, and for tasks without distributions.
    present: bool [requests, members]; false for a member that was absent, or whose output for the request was not finite.
    """

    prediction: Tensor
    weights: Tensor
    disagreement: Tensor
    present: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all of it, in the order of the fields."""
        return self.prediction, self.weights, self.disagreement, self.present

    def first(self, requests: int) -> "FusionResult":
        """Return the result of the first so many requests."""
        return FusionResult(*(part[:requests] for part in self.parts()))


class Fusion(nn.Module):
    """A fusion: whatever is fitted is a buffer of it, so that it moves, is copied and is saved as one thing.

    Weights are no buffer: they come with the requests, since any request may bring its own, and a second copy could differ.
    No fusion waits for the device or lets a value decide a shape, so that a CUDA graph can hold it.
    """

    def __init__(self, fused_members: Sequence[int], needs: Collection[int] = ()) -> None:
        """Fuse the members with the indexes `fused_members`. Without one of `needs` there is no answer."""
        super().__init__()
        self.fused_members = tuple(fused_members)
        self.needs = frozenset(needs)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> FusionResult:
        """Fuse the members' outputs, request by request, over the members that are present and finite.

        outputs: one float per member, as the member gave it: [requests, ...], or [requests, samples, ...] of one that may have
        several samples for a request. What lies beyond a request's own samples, or belongs to a member that is not fused, may be
        anything.
        weights: float32 [requests, members], finite, at least 0; renormalised here.
        samples: int32 (or bool) [requests, members]; how many samples each member has for the request, 0 where it is absent.
        """
        counts = self._fused_columns(samples.to(torch.int32))
        values = [self.read_output(outputs[member], counts[:, at]) for at, member in enumerate(self.fused_members)]
        counts = counts * torch.stack([is_finite(value) for value in values], dim=-1)
        shares = renormalise(self._fused_columns(weights), counts > 0)
        disagreement = shares.new_full(shares.shape[:1], torch.nan)
        return self._make_result(self.fuse(values, shares, counts), shares, disagreement, counts > 0, weights.shape[1])

    def read_output(self, output: Tensor, count: Tensor) -> Tensor:
        """Return what is fused of a member's output, float32 [requests, ...]; count: int32 [requests], its samples for each.

        A request's part that holds NaN, an infinity or more than MAX_MAGNITUDE counts as absent.
        """
        return output.float()

    def fuse(self, values: Sequence[Tensor], weights: Tensor, counts: Tensor) -> Tensor:
        """Return the prediction from what `read_output` returned for the fused members; an absent one's part may be anything.

        weights: float32 [requests, fused members]; 0 for the absent, summing to 1 over the present, all 0 where none is.
        counts: int32 [requests, fused members]; the samples, 0 for the absent.
        """
        raise NotImplementedError

    def member_prediction(self, member: int, output: Tensor) -> Tensor:
        """Return a member's own calibrated prediction for its output, float [requests, ...], in the form of the task's.

        For similarity it is the embedding itself.
        """
        return output.float()

    def needed_by(self, members: Collection[int]) -> frozenset[int]:
        """Return the members without which a request that has input for `members` has no answer, by index."""
        return self.needs

    def prediction_length(self, samples: Mapping[int, int]) -> int | None:
        """Return how many entries of the prediction belong to a request with so many samples by member; None: all of them."""
        return None

    def _make_result(
        self, prediction: Tensor, weights: Tensor, disagreement: Tensor, present: Tensor, members: int
    ) -> FusionResult:  # fmt: skip
        weights, present = self._all_columns(weights, members), self._all_columns(present, members)
        return FusionResult(prediction, weights, disagreement, present)

    def _fused_columns(self, values: Tensor) -> Tensor:
        """Pick the fused members' columns of [requests, members]; by slices: a list of indexes would travel to the device."""
        if self.fused_members == tuple(range(values.shape[1])):
            return values
        return torch.stack([values[:, member] for member in self.fused_members], dim=-1)

    def _all_columns(self, values: Tensor, members: int) -> Tensor:
        """Put the columns of [requests, fused members] where they stand among all members, with 0 for the others."""
        if self.fused_members == tuple(range(members)):
            return values
        columns = [torch.zeros_like(values[:, 0])] * members
        for member, column in zip(self.fused_members, values.unbind(-1), strict=True):
            columns[member] = column
        return torch.stack(columns, dim=-1)


def is_finite(values: Tensor) -> Tensor:
    """Return which requests of float32 [requests, ...] hold only finite numbers: bool [requests]. A NaN compares as false."""
    return values.abs().reshape(len(values), -1).amax(-1).le(MAX_MAGNITUDE)


def renormalise(weights: Tensor, present: Tensor) -> Tensor:
    """Take the absent members' weights away and let the present ones share what is left, in their old proportion.

    weights: float [requests, members], finite, at least 0.
    present: bool [requests, members].
    Returns float [requests, members]: 0 for the absent; each request's sum to 1. Where the present members all weigh 0 (a caller
    gave all weight to a member that is absent) they share equally: a degraded answer is an answer. All 0 where none is present.
    """
    equal = present.to(weights.dtype)
    shares = weights * equal
    shares = torch.where(shares.sum(-1, keepdim=True) >= TINY, shares, equal)
    return shares / shares.sum(-1, keepdim=True).clamp_min(TINY)

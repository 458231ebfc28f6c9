"""Fusing tensors without further meaning: their weighted mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .fusion import Fused, Fusion


def mean_tensor(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Average the members' tensors, element by element.

    tensors: one float32 [rows, *shape] per member, all of one shape.
    weights: float32 [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float32 [rows, *shape]: sum_m w_m x_m; 0 in a row of all-0 weights.
    """
    shares = weights.t().reshape(len(tensors), len(weights), *[1] * (tensors[0].ndim - 1))
    return (torch.stack(list(tensors)) * shares).masked_fill(shares.logical_not(), 0.0).sum(0)


class TensorFusion(Fusion):
    """Fuses tensors of one shape."""

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Average the members' tensors; see `Fusion.forward`."""
        votes = self.hear(outputs, weights, samples)
        return self.conclude(votes, weights.shape[1], mean_tensor(votes.values, votes.shares))

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's tensor as it is, float32 [rows, *shape]."""
        return output.float()

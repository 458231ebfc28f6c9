"""The way to make one embedding out of several."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .weights import TINY


def concatenation(embeddings: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Put the members' unit vectors side by side, each scaled by the root of its weight.

    embeddings: one float32 [rows, features of the member] per member.
    weights: float32 [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float32 [rows, sum of the members' features], of unit length; an absent member's part is 0, and so is a zero
    vector's, which has no direction (the row is then shorter than 1).
    The cosine of two rows with the same weights is the weighted mean of the members' cosines; where the weights differ,
    member m's cosine counts sqrt(w_m w'_m).
    Source: Gönen & Alpaydın 2011, "Multiple kernel learning algorithms" (a weighted sum of kernels is the kernel of the
    concatenated feature maps, each scaled by the root of its weight).
    """
    # The squares of large and of small features leave fp32's range, so lengths are summed in double.
    lengths = torch.stack([torch.linalg.vector_norm(one, dim=-1, dtype=torch.float64) for one in embeddings], dim=-1)
    scales = (weights.sqrt() / lengths.clamp_min(TINY)).float().t().unsqueeze(-1)
    absent = weights.t().unsqueeze(-1).logical_not()
    parts = [
        (embedding * scale).masked_fill(is_absent, 0.0)
        for embedding, scale, is_absent in zip(embeddings, scales.unbind(), absent.unbind(), strict=True)
    ]
    return torch.cat(parts, dim=-1)

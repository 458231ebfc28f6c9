"""Whose opinion counts, and how much, when some members are absent."""

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def renormalise(weights: Tensor, present: Tensor) -> Tensor:
    """Take the absent members' weights away and let the present ones share what is left, in their old proportion.

    weights: float [rows, members], finite, at least 0.
    present: bool [rows, members].
    Returns float [rows, members]: 0 for the absent; each row sums to 1. Where the present members all weigh 0 (a caller
    gave all weight to a member that is absent) they share equally: a degraded answer is an answer. A row with nobody
    present is all 0.
    """
    equal = present.to(weights.dtype)
    shares = weights * equal
    shares = torch.where(shares.sum(-1, keepdim=True) >= TINY, shares, equal)
    return shares / shares.sum(-1, keepdim=True).clamp_min(TINY)

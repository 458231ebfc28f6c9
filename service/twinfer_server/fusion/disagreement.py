"""How far the members' beliefs lie apart."""

import torch
from torch import Tensor

MIN_ENTROPY = 1e-10
"""In nats. Below it the quotient would be rounding noise: one member has all the weight but some 1e-12."""


def measure_disagreement(logits: Tensor, weights: Tensor) -> Tensor:
    """Divide the generalised Jensen-Shannon divergence of the members' beliefs by its bound, the weights' entropy.

    logits: float [members, rows, classes], before softmax.
    weights: float [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float32 [rows]: 0 where all believe the same, 1 where they are certain of different classes, NaN where fewer
    than two members have weight.

    JSD = H(sum_m w_m p_m) - sum_m w_m H(p_m). Draw a member by its weight and a class by its belief: JSD is what the
    class tells about the member. So JSD / H(w) = (H(member) - H(member | class)) / H(member), and both entropies come
    from one joint distribution: in double, since they are small differences of large numbers when one weight nears 1.
    Source: Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    shares = weights.t().double()
    shares_by_class = shares.unsqueeze(-1)
    beliefs = logits.softmax(-1, dtype=torch.float64).masked_fill(shares_by_class.logical_not(), 0.0)
    entropy = torch.threshold(_member_entropy(shares), MIN_ENTROPY, torch.nan)
    unexplained = _member_entropy(beliefs * shares_by_class).sum(-1)
    return ((entropy - unexplained) / entropy).clamp(0.0, 1.0).float()


def _member_entropy(masses: Tensor) -> Tensor:
    """Give each column's total times the entropy, in nats, of the members' shares in it; masses: [members, ...]."""
    total = masses.sum(0)
    # Not torch.special.entr: on CUDA that compiles a kernel when it is first called.
    return torch.xlogy(total, total) - torch.xlogy(masses, masses).sum(0)

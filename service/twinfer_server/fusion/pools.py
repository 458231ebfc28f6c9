"""The ways to make one distribution out of several over the same classes, and how far those lie apart.

All functions take
    logits: float [members, requests, classes], before softmax; -inf rules a class out;
    weights: float [requests, members]; 0 for an absent member; each request's sum to 1, or are all 0;
and a pool returns log-probabilities, float [requests, classes], uniform where all weights are 0.

All put a constant in an absent member's part by selecting, never by multiplying: 0 times NaN is NaN. That constant
is finite, for a request without any member would be nothing but -inf and normalise to NaN.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

Pool = Callable[[Tensor, Tensor], Tensor]
"""From logits and weights to log-probabilities."""

RANK_CONSTANT = 60.0
"""What Cormack et al. have found to do well."""
MIN_EXPONENT = 0.05
"""However unsure several members are together: a distribution to the power of 0 would say nothing."""
MIN_ENTROPY = 1e-10
"""In nats. Below it the disagreement would be rounding noise: one member has all the weight but some 1e-12."""


def weighted_mean(logits: Tensor, weights: Tensor) -> Tensor:
    """Average the members' probabilities: the linear opinion pool.

    p = sum_m w_m p_m, summed as logarithms so that small probabilities do not underflow.
    A mean of logits and a product of distributions are not this pool but special cases of `log_opinion_pool`.
    Source: Stone 1961, "The opinion pool"; Genest & Zidek 1986 (the linear opinion pool).
    """
    weights = weights.t().unsqueeze(-1)
    absent = weights.logical_not()
    # 1 in an absent member's part: the derivative of log 0, by which weights are fitted, is not finite.
    terms = logits.log_softmax(-1) + weights.masked_fill(absent, 1.0).log()
    terms = terms.masked_fill(absent, torch.finfo(terms.dtype).min)
    # Member by member: for as few as they are, less work than `logsumexp`, which is a dozen kernels.
    return reduce(torch.logaddexp, terms.unbind()).log_softmax(-1)


def log_opinion_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Multiply the members' distributions, each to the power of its weight, and renormalise.

    log p = sum_m w_m log p_m - log Z, and logits do for log p_m, since Z takes up what each lacks. A class that any
    member with weight rules out is ruled out; members that rule out all classes between them have no pool: NaN.
    Special cases: the softmax of the mean logits is this pool with equal weights. The product of experts (Hinton 2002)
    is this pool with every weight 1, so equal weights give the product at temperature `members`: the same ranking.
    Source: Genest & Zidek 1986 (the logarithmic opinion pool).
    """
    weights = weights.t().unsqueeze(-1)
    return (logits * weights).masked_fill(weights.logical_not(), 0.0).sum(0).log_softmax(-1)


def maximum(logits: Tensor, weights: Tensor) -> Tensor:
    """Take, for each class, the largest probability that any present member gives it, and renormalise.

    p = max_m p_m / Z. Of weights only 0 counts: a probability scaled by a weight is no longer one to compare.
    Source: Kittler, Hatef, Duin & Matas 1998, "On combining classifiers" (the max rule, equal priors).
    """
    absent = weights.t().unsqueeze(-1).logical_not()
    return logits.log_softmax(-1).masked_fill(absent, torch.finfo(logits.dtype).min).amax(0).log_softmax(-1)


def reciprocal_rank(logits: Tensor, weights: Tensor, k: float = RANK_CONSTANT) -> Tensor:
    """Score every class by its ranks among the members' classes, whatever their probabilities, and normalise the scores.

    score = sum_m w_m / (k + rank_m), ranks from 1; of equal logits the class with the lower index ranks first. A larger k makes the
    first ranks stand out less.
    Source: Cormack, Clarke & Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(dim=-1, stable=True) + 1  # the inverse of a permutation is what sorts it
    scores = (weights.t().unsqueeze(-1) / (k + ranks)).sum(0)
    is_empty = weights.sum(-1, keepdim=True).logical_not()
    return scores.masked_fill(is_empty, 1.0).log().log_softmax(-1)


def sharpen(log_probabilities: Tensor, weights: Tensor, sharpness: Tensor) -> Tensor:
    """Make a pooled distribution surer, or less sure, by how many members it comes from.

    log_probabilities: float [requests, classes], and so is what is returned.
    p^e / Z with e = 1 + sharpness (n - 1), where n = 1 / sum_m w_m^2 is how many equal members the weights amount to. So a lone
    member's distribution stays what it is, and so does every one at sharpness 0, a scalar.
    Pools whose weights sum to 1 are less sure than the evidence of several members allows; with calibrated members that err
    independently, equal weights in a logarithmic pool and sharpness 1 give the product of their distributions: Bayes' rule.
    Source: Ranjan & Gneiting 2010, "Combining probability forecasts"; Satopää et al. 2014, "Combining multiple probability
    predictions using a simple logit model".
    """
    count = weights.square().sum(-1, keepdim=True).clamp_min(1 / weights.shape[-1]).reciprocal()
    exponent = (1 + sharpness * (count - 1)).clamp_min(MIN_EXPONENT)
    return (log_probabilities * exponent).log_softmax(-1)


def measure_disagreement(logits: Tensor, weights: Tensor) -> Tensor:
    """Divide the generalised Jensen-Shannon divergence of the members' distributions by its bound, the weights' entropy.

    Returns float32 [requests]: 0 where all say the same, 1 where they are certain of different classes, NaN where fewer
    than two members have weight.

    JSD = H(sum_m w_m p_m) - sum_m w_m H(p_m). Draw a member by its weight and a class by its distribution: JSD is what the
    class tells about the member. So JSD / H(w) = (H(member) - H(member | class)) / H(member), and both entropies come
    from one joint distribution: in double, since they are small differences of large numbers when one weight nears 1.
    Source: Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    shares = weights.t().double()
    shares_by_class = shares.unsqueeze(-1)
    probabilities = logits.softmax(-1, dtype=torch.float64).masked_fill(shares_by_class.logical_not(), 0.0)
    entropy = torch.threshold(_member_entropy(shares), MIN_ENTROPY, torch.nan)
    unexplained = _member_entropy(probabilities * shares_by_class).sum(-1)
    return ((entropy - unexplained) / entropy).clamp(0.0, 1.0).float()


def _member_entropy(masses: Tensor) -> Tensor:
    """Return each column's total times the entropy, in nats, of the members' shares in it; masses: [members, ...]."""
    total = masses.sum(0)
    # Not torch.special.entr: on CUDA that compiles a kernel when it is first called.
    return torch.xlogy(total, total) - torch.xlogy(masses, masses).sum(0)

"""The ways to make one belief out of several: opinion pools over the same classes.

All put a constant in an absent member's place by selecting, never by multiplying: 0 times NaN is NaN. That constant
is finite, for a row in which all are absent would be nothing but -inf and normalise to NaN. A logit of -inf rules its
class out.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

Pool = Callable[[Tensor, Tensor], Tensor]
"""(logits float [members, rows, classes], weights float [rows, members]) -> log-probabilities float [rows, classes]."""

RANK_CONSTANT = 60.0
"""What Cormack et al. have found to do well."""

MIN_EXPONENT = 0.05
"""However little several members may be believed together: a belief to the power of 0 would say nothing."""


def weighted_mean(logits: Tensor, weights: Tensor) -> Tensor:
    """Average the members' probabilities: the linear opinion pool.

    logits: float [members, rows, classes], before softmax.
    weights: float [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float [rows, classes], log-probabilities; a row of all-0 weights is uniform.
    p = sum_m w_m p_m, summed as logarithms so that small probabilities do not underflow.
    A mean of logits and a product of beliefs are not this pool but special cases of `log_opinion_pool`.
    Source: Stone 1961, "The opinion pool"; Genest & Zidek 1986 (the linear opinion pool).
    """
    weights = weights.t().unsqueeze(-1)
    absent = weights.logical_not()
    # 1 in an absent member's place: the derivative of log 0, by which weights are fitted, is not finite.
    terms = logits.log_softmax(-1) + weights.masked_fill(absent, 1.0).log()
    terms = terms.masked_fill(absent, torch.finfo(terms.dtype).min)
    # Member by member: for as few as they are, less work than `logsumexp`, which is a dozen kernels.
    return reduce(torch.logaddexp, terms.unbind()).log_softmax(-1)


def log_opinion_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Multiply the members' beliefs, each to the power of its weight, and renormalise.

    logits: float [members, rows, classes], before softmax.
    weights: float [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float [rows, classes], log-probabilities; a row of all-0 weights is uniform.
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

    logits: float [members, rows, classes], before softmax.
    weights: float [rows, members]; 0 for an absent member. Only that counts: the rule knows no weights, and a belief
    scaled by a weight is no longer one to compare.
    Returns float [rows, classes], log-probabilities; a row of all-0 weights is uniform.
    p = max_m p_m / Z.
    Source: Kittler, Hatef, Duin & Matas 1998, "On combining classifiers" (the max rule, equal priors).
    """
    absent = weights.t().unsqueeze(-1).logical_not()
    beliefs = logits.log_softmax(-1).masked_fill(absent, torch.finfo(logits.dtype).min)
    return beliefs.amax(0).log_softmax(-1)


def reciprocal_rank(logits: Tensor, weights: Tensor, k: float = RANK_CONSTANT) -> Tensor:
    """Score every class by its places in the members' rankings, whatever their beliefs, and normalise the scores.

    logits: float [members, rows, classes], before softmax.
    weights: float [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    k: how little the first places stand out.
    Returns float [rows, classes], the logarithms of scores that sum to 1; a row of all-0 weights is uniform.
    score = sum_m w_m / (k + rank_m), ranks from 1; of equal logits the class with the lower index ranks first.
    Source: Cormack, Clarke & Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(dim=-1, stable=True) + 1  # the inverse of a permutation is what sorts it
    scores = (weights.t().unsqueeze(-1) / (k + ranks)).sum(0)
    nobody = weights.sum(-1, keepdim=True).logical_not()
    return scores.masked_fill(nobody, 1.0).log().log_softmax(-1)


def sharpen(beliefs: Tensor, weights: Tensor, sharpness: Tensor) -> Tensor:
    """Make pooled beliefs surer, or less sure, by how many members they come from.

    beliefs: float [rows, classes], log-probabilities.
    weights: float [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    sharpness: float, a scalar; 0 leaves the beliefs as they are.
    Returns float [rows, classes], log-probabilities: p^e / Z with e = 1 + sharpness (n - 1), where n = 1 / sum_m w_m^2 is how many
    equal members the weights amount to. So a lone member's belief stays what it is.
    Pools whose weights sum to 1 are less sure than the evidence of several members allows; with calibrated members that err
    independently, equal weights in a logarithmic pool and sharpness 1 give the product of their beliefs, which is Bayes' rule.
    Source: Ranjan & Gneiting 2010, "Combining probability forecasts"; Satopää et al. 2014, "Combining multiple probability
    predictions using a simple logit model".
    """
    count = weights.square().sum(-1, keepdim=True).clamp_min(1 / weights.shape[-1]).reciprocal()
    exponent = (1 + sharpness * (count - 1)).clamp_min(MIN_EXPONENT)
    return (beliefs * exponent).log_softmax(-1)

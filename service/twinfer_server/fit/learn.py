"""Fitting a pool (temperatures, weights, how much surer several members are than one) or a stacking head.

What is fitted of a pool starts from what the ensemble's file says and is held near it by a prior, so that a few rows change little
and rows without a single mistake do not make the fusion infinitely sure.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..fusion import Pool, StackingHead, log_opinion_pool, renormalise, sharpen, stacking_features
from ..terminal import OnProgress
from .rows import deal_folds

PRIOR_SCALE = 0.5
"""The standard deviation of the prior of the logarithm of everything fitted: numbers beyond a factor of e^(2 * 0.5) = 2.7 from
the file's take a lot of rows to show."""
POOL_FOLDS = 10
SURE = 2.0
"""By how many standard errors fitted weights must be better, cross-validated, before they replace the file's. Twice what Breiman
et al. 1984, "Classification and regression trees", ask for: rows that come later differ from these by more than chance."""
ALONE = 0.05
"""Below so many members' worth beyond the first, there is nothing to be surer of."""
HEAD_FOLDS = 5
DECAYS = (0.1, 1.0, 10.0, 100.0)
"""Weight decays of a head to choose from by cross-validation: half of it, times the weights' squared distance from what few rows
are to give, stands beside the summed NLL."""
MAX_SUBSETS = 16
"""How many different sets of members a head is shown, at most, where there are more."""
WHOLE_SHARE = 0.5
"""How much of a head's loss is that of rows as they come; the rest is that of rows that have lost members."""


@dataclass(frozen=True, slots=True)
class PoolData:
    """What a pool is fitted to: questions, each about the classes of a row, or about one label of it, yes or no.

    `logits` is float64 [members, questions, classes], `present` bool [questions, members], `truth` int64 [questions], and `fold`,
    int64 [questions], deals them out for cross-validation: all of a row to one fold.
    """

    logits: Tensor
    present: Tensor
    truth: Tensor
    fold: Tensor

    def pick(self, chosen: Tensor) -> "PoolData":
        """Return the questions chosen by bool [questions]."""
        return PoolData(self.logits[:, chosen], self.present[chosen], self.truth[chosen], self.fold[chosen])


@dataclass(frozen=True, slots=True)
class PoolNumbers:
    """What is fitted of a pool, all float64.

    `temperatures` and `weights` are [members], the latter summing to 1; `sharpness` is the scalar that `fusion.sharpen` takes.
    """

    temperatures: Tensor
    weights: Tensor
    sharpness: Tensor


def fuse(pool: Pool, data: PoolData, numbers: PoolNumbers) -> Tensor:
    """Pool the questions as the served fusion does, but in float64: log-probabilities [questions, classes]."""
    shares = renormalise(numbers.weights.expand(len(data.present), -1), data.present)
    return sharpen(pool(data.logits / numbers.temperatures[:, None, None], shares), shares, numbers.sharpness)


def fit_pool(
    pool: Pool, data: PoolData, start: PoolNumbers, takes_weights: bool, on_progress: OnProgress
) -> tuple[PoolNumbers, dict[str, Any]]:  # fmt: skip
    """Fit temperatures, then how sure the pool is; and the weights, where cross-validation shows that this pays.

    `start` is what the ensemble's file says. A member's temperature is the one that calibrates it alone (Guo et al. 2017), so that
    an answer from it alone is calibrated too. In a logarithmic pool a temperature also changes how much the member counts, so there
    weights that are kept make up for it: calibrating a member changes how sure it is, not how much it counts.
    Returns the numbers and why the weights were fitted or kept: the mean NLL of either on rows left out of the fit, the gain of
    fitting them and its standard error, in nats; empty where the method takes no weights, or there is one member.
    """
    if len(start.weights) == 1 or not takes_weights:
        return _fit_numbers(pool, data, start, fits_weights=False), {}
    losses = torch.zeros(2, len(data.fold), dtype=torch.float64)
    for fold in range(POOL_FOLDS):
        is_out = data.fold == fold
        seen, left_out = data.pick(~is_out), data.pick(is_out)
        for number, fits_weights in enumerate((False, True)):
            fused = fuse(pool, left_out, _fit_numbers(pool, seen, start, fits_weights))
            losses[number, is_out] = functional.nll_loss(fused, left_out.truth, reduction="none")
        on_progress(fold + 1, POOL_FOLDS)
    gains = losses[0] - losses[1]
    gain, error = gains.mean().item(), gains.std().item() / math.sqrt(len(gains))
    is_better, (kept, fitted) = gain > SURE * error, losses.mean(1).tolist()
    choice = {"kept_nll": kept, "fitted_nll": fitted, "gain": gain, "gain_error": error, "weights_are_fitted": is_better}
    return _fit_numbers(pool, data, start, is_better), choice


def fit_temperature(logits: Tensor, truth: Tensor, start: float = 1.0) -> float:
    """Return the temperature that calibrates one member: float64 [rows, classes], int64 [rows].

    Minimises the NLL of softmax(logits / T), with a prior around `start`. Source: Guo, Pleiss, Sun & Weinberger 2017, "On
    calibration of modern neural networks"; the prior is ours.
    """
    step = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    minimise(lambda: functional.cross_entropy(logits / (start * step.exp()), truth, reduction="sum") + _cost(step), [step])
    return start * math.exp(step.item())


def fit_head(
    logits: Tensor, present: Tensor, targets: Tensor, exponents: Tensor, hidden: int, seed: int, on_progress: OnProgress
) -> tuple[StackingHead, float]:  # fmt: skip
    """Return a head fitted by its NLL, and the weight decay that cross-validation chose.

    logits: float64 [members, rows, classes], calibrated; or [members, rows, labels, 2] for multi_label.
    present: bool [rows, members]. targets: bool [rows, classes or labels].
    exponents: float64 [members]; how much each member counts in a logarithmic pool. Few rows keep a linear head near that pool; one
    with a hidden layer begins at random, and is kept near 0.
    Every row is also shown as if members were missing, so the head knows what each set of them is worth. Deterministic for a seed.
    """
    fold, losses = torch.from_numpy(deal_folds(targets.numpy(), HEAD_FOLDS, seed)), dict.fromkeys(DECAYS, 0.0)
    for number, (decay, out) in enumerate(itertools.product(DECAYS, range(HEAD_FOLDS)), start=1):
        kept, is_out = fold != out, fold == out
        head = _train_head(logits[:, kept], present[kept], targets[kept], exponents, hidden, decay, seed)
        with torch.no_grad():
            losses[decay] += _sum_nll(
                head(stacking_features(logits[:, is_out], present[is_out])), targets[is_out], logits.ndim
            ).item()
        on_progress(number, HEAD_FOLDS * len(DECAYS))
    best = min(DECAYS, key=lambda decay: losses[decay])
    return _train_head(logits, present, targets, exponents, hidden, best, seed).float(), best


def minimise(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
    """Move parameters, float64, to where `loss` is smallest near them, by L-BFGS; deterministic.

    Raises RuntimeError where the loss is not finite.
    """
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=200, history_size=50, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def evaluate() -> float:
        optimiser.zero_grad()
        value = loss()
        if not value.isfinite():
            raise RuntimeError("the fit found no finite numbers; this is a defect of twinfer, and nothing was written")
        value.backward()
        return value.item()

    optimiser.step(evaluate)


def _fit_numbers(pool: Pool, data: PoolData, start: PoolNumbers, fits_weights: bool) -> PoolNumbers:
    """Fit the temperatures one by one, then sharpness and, if asked, weights together."""
    temperatures = start.temperatures.clone()
    for index, before in enumerate(start.temperatures.tolist()):
        seen = data.present[:, index]
        if seen.any():
            temperatures[index] = fit_temperature(data.logits[index, seen], data.truth[seen], before)
    weights = start.weights
    if pool is log_opinion_pool:
        weights = weights * temperatures / start.temperatures
        weights = weights / weights.sum()
    logs = weights.clamp_min(1e-3).log()
    step = torch.zeros(1 + (len(weights) if fits_weights else 0), dtype=torch.float64, requires_grad=True)

    def numbers() -> PoolNumbers:
        shares = (logs + step[1:]).softmax(0) if fits_weights else weights
        # All members together are to be taken to the power of e^step.
        others = 1 / shares.square().sum() - 1
        return PoolNumbers(temperatures, shares, step[0].expm1() / others if others > ALONE else step.new_zeros(()))

    minimise(lambda: functional.nll_loss(fuse(pool, data, numbers()), data.truth, reduction="sum") + _cost(step), [step])
    with torch.no_grad():
        return numbers()


def _cost(step: Tensor) -> Tensor:
    return 0.5 * (step / PRIOR_SCALE).square().sum()


def _train_head(
    logits: Tensor, present: Tensor, targets: Tensor, exponents: Tensor, hidden: int, decay: float, seed: int
) -> StackingHead:  # fmt: skip
    head = _start_head(len(logits), targets.shape[1], exponents, hidden, seed)
    weights = [parameter for name, parameter in head.named_parameters() if "weight" in name]
    origins = [torch.zeros_like(weight) if hidden else weight.detach().clone() for weight in weights]
    subsets = _list_subsets(len(logits), seed)
    views = [(present, WHOLE_SHARE if len(subsets) else 1.0)]
    views += [(present & subset, (1 - WHOLE_SHARE) / len(subsets)) for subset in subsets]
    shown = []  # features, truth and share of the loss of the rows that a view leaves a member
    for view, share in views:
        kept = view.any(-1)
        shown.append((stacking_features(logits[:, kept], view[kept]), targets[kept], share))

    def loss() -> Tensor:
        distance = torch.stack([(weight - origin).square().sum() for weight, origin in zip(weights, origins, strict=True)]).sum()
        nll = [share * _sum_nll(head(features), truth, logits.ndim) for features, truth, share in shown]
        return 0.5 * decay * distance + torch.stack(nll).sum()

    minimise(loss, list(head.parameters()))
    return head


def _start_head(members: int, classes: int, exponents: Tensor, hidden: int, seed: int) -> StackingHead:
    """Make a head that begins at random, or, linear, as a logarithmic pool: each class adds up what the members say of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StackingHead(members, classes, hidden).double()
    if not hidden:
        pooled = torch.cat([exponent * torch.eye(classes, dtype=torch.float64) for exponent in exponents], dim=1)
        with torch.no_grad():
            head.out.weight.zero_()
            head.out.weight[:, : pooled.shape[1]] = pooled
            head.out.bias.zero_()
    return head


def _list_subsets(members: int, seed: int) -> Tensor:
    """List sets of members that may be left, bool [sets, members]: all that lack one, or MAX_SUBSETS drawn by `seed`."""
    subsets = torch.tensor(list(itertools.product((True, False), repeat=members)))[1:-1]  # neither all members nor none
    return subsets[torch.randperm(len(subsets), generator=torch.Generator().manual_seed(seed))[:MAX_SUBSETS]]


def _sum_nll(answers: Tensor, targets: Tensor, ndim: int) -> Tensor:
    """Sum the NLL over rows, and over labels where the members' logits have four dimensions (multi_label).

    answers: logits [rows, classes or labels]. targets: bool, of the same shape.
    """
    if ndim == 4:
        return functional.binary_cross_entropy_with_logits(answers, targets.to(answers.dtype), reduction="sum")
    return functional.cross_entropy(answers, targets.to(torch.int64).argmax(-1), reduction="sum")

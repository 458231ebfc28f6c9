"""Fitting a pool: a temperature for each member, the members' weights, and how much surer several are than one.

All that is fitted starts from what the ensemble's file says and is held near it by a prior, so that a few rows change little and
rows without a single mistake do not make the fusion infinitely sure.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..fusion import Pool, log_opinion_pool, renormalise, sharpen
from .optimum import minimise
from .outputs import OnProgress

PRIOR_SCALE = 0.5
"""The standard deviation of the prior of the logarithm of everything fitted: numbers beyond a factor of e^(2 * 0.5) = 2.7 from
the file's take a lot of rows to show."""
FOLDS = 10
"""For cross-validation."""
SURE = 2.0
"""By how many standard errors fitted weights must be better, cross-validated, before they replace the file's. Twice what Breiman
et al. 1984, "Classification and regression trees", ask for: rows that come later differ from these by more than chance."""
ALONE = 0.05
"""Below so many members' worth beyond the first, there is nothing to be surer of."""


@dataclass(frozen=True, slots=True)
class PoolData:
    """What a pool is fitted to: questions, each about the classes of a row, or about one label of it, yes or no.

    `logits` is float64 [voters, questions, classes], `present` bool [questions, voters], `truth` int64 [questions], and `fold`,
    int64 [questions], deals them out for cross-validation: all of a row to one fold.
    """

    logits: Tensor
    present: Tensor
    truth: Tensor
    fold: Tensor

    def pick(self, chosen: Tensor) -> "PoolData":
        """Give the questions chosen by bool [questions]."""
        return PoolData(self.logits[:, chosen], self.present[chosen], self.truth[chosen], self.fold[chosen])


@dataclass(frozen=True, slots=True)
class PoolNumbers:
    """What is fitted of a pool: float64 [members] each, `weights` summing to 1; `sharpness` is that of `fusion.sharpen`."""

    temperatures: Tensor
    weights: Tensor
    sharpness: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Why the weights were fitted, or kept: the mean loss of either on rows left out of the fit, in nats.

    `gain` is kept less fitted, mean over the questions, `gain_error` its standard error; `weights_are_fitted` says what was taken.
    """

    kept_nll: float
    fitted_nll: float
    gain: float
    gain_error: float
    weights_are_fitted: bool


@dataclass(frozen=True, slots=True)
class PoolFit:
    """A fitted pool; `choice` is None where the method takes no weights, or there is one member."""

    numbers: PoolNumbers
    choice: Choice | None


def fuse(pool: Pool, data: PoolData, numbers: PoolNumbers | tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Pool the questions with these numbers, as the served fusion does but in float64: log-probabilities [questions, classes]."""
    temperatures, weights, sharpness = (
        (numbers.temperatures, numbers.weights, torch.tensor(numbers.sharpness)) if isinstance(numbers, PoolNumbers) else numbers
    )
    shares = renormalise(weights.expand(len(data.present), -1), data.present)
    return sharpen(pool(data.logits / temperatures[:, None, None], shares), shares, sharpness)


def fit_pool(
    pool: Pool, data: PoolData, start: PoolNumbers, takes_weights: bool, on_progress: OnProgress
) -> PoolFit:  # fmt: skip
    """Fit temperatures, then how sure the pool is; and the weights, where cross-validation shows that this pays.

    `start` is what the ensemble's file says. A member's temperature is the one that calibrates it alone (Guo et al. 2017), so that
    an answer from it alone is calibrated too. In a logarithmic pool a temperature also changes how much the member counts, so there
    weights that are kept make up for it: calibrating a member changes how sure it is, not who is listened to.
    """
    members = len(start.weights)
    if members == 1 or not takes_weights:
        on_progress(1, 1)
        return PoolFit(_fit(pool, data, start, has_fitted_weights=False), None)
    folds = data.fold
    losses = torch.zeros(2, len(folds), dtype=torch.float64)
    for fold in range(FOLDS):
        seen, left_out = data.pick(folds != fold), data.pick(folds == fold)
        for number, has_fitted_weights in enumerate((False, True)):
            fused = fuse(pool, left_out, _fit(pool, seen, start, has_fitted_weights))
            losses[number, folds == fold] = functional.nll_loss(fused, left_out.truth, reduction="none")
        on_progress(fold + 1, FOLDS + 1)
    gains = losses[0] - losses[1]
    gain, error = gains.mean().item(), gains.std().item() / math.sqrt(len(gains))
    choice = Choice(losses[0].mean().item(), losses[1].mean().item(), gain, error, gain > SURE * error)
    numbers = _fit(pool, data, start, choice.weights_are_fitted)
    on_progress(FOLDS + 1, FOLDS + 1)
    return PoolFit(numbers, choice)


def fit_temperature(logits: Tensor, truth: Tensor, start: float = 1.0) -> float:
    """Find the temperature that calibrates one member: float64 [rows, classes], int64 [rows].

    Minimises the NLL of softmax(logits / T), with a prior around `start`. Source: Guo, Pleiss, Sun & Weinberger 2017, "On
    calibration of modern neural networks"; the prior is ours.
    """

    def loss(step: Tensor) -> Tensor:
        return functional.cross_entropy(logits / (start * step.exp()), truth, reduction="sum") + _cost(step)

    return start * math.exp(minimise(loss, torch.zeros(1)).item())


def _fit(pool: Pool, data: PoolData, start: PoolNumbers, has_fitted_weights: bool) -> PoolNumbers:
    """Fit the temperatures one by one, then sharpness and, if asked, weights together."""
    temperatures = start.temperatures.clone()
    for index in range(len(temperatures)):
        seen = data.present[:, index]
        if seen.any():
            temperatures[index] = fit_temperature(data.logits[index, seen], data.truth[seen], start.temperatures[index].item())
    weights = start.weights
    if pool is log_opinion_pool:
        weights = weights * temperatures / start.temperatures
        weights = weights / weights.sum()
    logs = weights.clamp_min(1e-3).log()
    members = len(weights)

    def numbers(step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shares = (logs + step[1:]).softmax(0) if has_fitted_weights else weights
        return temperatures, shares, _sharpness(shares, start.sharpness, step[0])

    def loss(step: Tensor) -> Tensor:
        return functional.nll_loss(fuse(pool, data, numbers(step)), data.truth, reduction="sum") + _cost(step)

    _, shares, sharpness = numbers(minimise(loss, torch.zeros(1 + (members if has_fitted_weights else 0))))
    return PoolNumbers(temperatures, shares, float(sharpness))


def _sharpness(weights: Tensor, start: float, step: Tensor) -> Tensor:
    """Give the sharpness that makes the whole crew's exponent e^step times as large as `start` does."""
    others = 1 / weights.square().sum() - 1
    if others < ALONE:
        return torch.zeros((), dtype=torch.float64)
    return ((1 + start * others) * step.exp() - 1) / others


def _cost(step: Tensor) -> Tensor:
    return 0.5 * (step / PRIOR_SCALE).square().sum()

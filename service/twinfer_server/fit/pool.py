"""Fitting a pool: a temperature for each member, the members' weights, and how much surer several are than one.

All that is fitted starts from what the ensemble's file says and is held near it by a prior, so that a few rows change little and
rows without a single mistake do not make the fusion infinitely sure.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from ..fusion import Pool, log_opinion_pool, renormalise, sharpen
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


class Choice(TypedDict):
    """Why the weights were fitted, or kept: the mean loss of either on rows left out of the fit, in nats.

    `gain` is kept less fitted, mean over the questions, `gain_error` its standard error; `weights_are_fitted` says what was taken.
    """

    kept_nll: float
    fitted_nll: float
    gain: float
    gain_error: float
    weights_are_fitted: bool


def fuse(pool: Pool, data: PoolData, numbers: PoolNumbers) -> Tensor:
    """Pool the questions as the served fusion does, but in float64: log-probabilities [questions, classes]."""
    shares = renormalise(numbers.weights.expand(len(data.present), -1), data.present)
    return sharpen(pool(data.logits / numbers.temperatures[:, None, None], shares), shares, numbers.sharpness)


def fit_pool(
    pool: Pool, data: PoolData, start: PoolNumbers, takes_weights: bool, on_progress: OnProgress
) -> tuple[PoolNumbers, Choice | None]:  # fmt: skip
    """Fit temperatures, then how sure the pool is; and the weights, where cross-validation shows that this pays.

    `start` is what the ensemble's file says. A member's temperature is the one that calibrates it alone (Guo et al. 2017), so that
    an answer from it alone is calibrated too. In a logarithmic pool a temperature also changes how much the member counts, so there
    weights that are kept make up for it: calibrating a member changes how sure it is, not how much it counts. The choice is None
    where there is none: the method takes no weights, or there is one member.
    """
    if len(start.weights) == 1 or not takes_weights:
        on_progress(1, 1)
        return _fit(pool, data, start, fits_weights=False), None
    losses = torch.zeros(2, len(data.fold), dtype=torch.float64)
    for fold in range(FOLDS):
        is_out = data.fold == fold
        seen, left_out = data.pick(~is_out), data.pick(is_out)
        for number, fits_weights in enumerate((False, True)):
            fused = fuse(pool, left_out, _fit(pool, seen, start, fits_weights))
            losses[number, is_out] = functional.nll_loss(fused, left_out.truth, reduction="none")
        on_progress(fold + 1, FOLDS + 1)
    gains = losses[0] - losses[1]
    gain, error = gains.mean().item(), gains.std().item() / math.sqrt(len(gains))
    is_better, (kept, fitted) = gain > SURE * error, losses.mean(1).tolist()
    choice = Choice(kept_nll=kept, fitted_nll=fitted, gain=gain, gain_error=error, weights_are_fitted=is_better)
    numbers = _fit(pool, data, start, is_better)
    on_progress(FOLDS + 1, FOLDS + 1)
    return numbers, choice


def fit_temperature(logits: Tensor, truth: Tensor, start: float = 1.0) -> float:
    """Return the temperature that calibrates one member: float64 [rows, classes], int64 [rows].

    Minimises the NLL of softmax(logits / T), with a prior around `start`. Source: Guo, Pleiss, Sun & Weinberger 2017, "On
    calibration of modern neural networks"; the prior is ours.
    """

    def loss(step: Tensor) -> Tensor:
        return functional.cross_entropy(logits / (start * step.exp()), truth, reduction="sum") + _cost(step)

    return start * math.exp(minimise(loss, torch.zeros(1)).item())


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return the float64 vector near `start` at which `loss` is smallest, by L-BFGS. Deterministic.

    Raises RuntimeError where the loss is not finite.
    """

    def evaluate(numbers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        vector = torch.tensor(numbers, requires_grad=True)
        value = loss(vector)
        return value.item(), torch.autograd.grad(value, vector)[0].numpy()

    options = {"maxiter": 200, "maxcor": 50, "ftol": 1e-12, "gtol": 1e-6}
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = optimize.minimize(evaluate, start.double().numpy(), jac=True, method="L-BFGS-B", options=options)
    if not (math.isfinite(found.fun) and np.isfinite(found.x).all()):
        raise RuntimeError("the fit found no finite numbers; this is a defect of twinfer, and nothing was written")
    return torch.from_numpy(found.x)


def _fit(pool: Pool, data: PoolData, start: PoolNumbers, fits_weights: bool) -> PoolNumbers:
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

    def numbers(step: Tensor) -> PoolNumbers:
        shares = (logs + step[1:]).softmax(0) if fits_weights else weights
        # All members together are to be taken to the power of e^step.
        others = 1 / shares.square().sum() - 1
        return PoolNumbers(temperatures, shares, step[0].expm1() / others if others > ALONE else step.new_zeros(()))

    def loss(step: Tensor) -> Tensor:
        return functional.nll_loss(fuse(pool, data, numbers(step)), data.truth, reduction="sum") + _cost(step)

    return numbers(minimise(loss, torch.zeros(1 + (len(weights) if fits_weights else 0))))


def _cost(step: Tensor) -> Tensor:
    return 0.5 * (step / PRIOR_SCALE).square().sum()

"""Fitting a pool: known numbers are found again, few rows change little, and what is fitted is what is served."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from twinfer_server.fit.learn import POOL_FOLDS, PRIOR_SCALE, PoolData, PoolNumbers, fit_pool, fit_temperature, fuse, minimise
from twinfer_server.fusion import log_opinion_pool, maximum, sharpen, weighted_mean

PLAIN = PoolNumbers(*(torch.tensor(values, dtype=torch.float64) for values in ([1.0, 1.0], [0.5, 0.5], 0.0)))

pytestmark = pytest.mark.usefixtures("one_thread")


def make_member(truth: Any, classes: int, strength: float, temperature: float, generator: np.random.Generator) -> torch.Tensor:
    """Make logits that are calibrated when divided by `temperature`.

    What is seen of a row is a normal number per class, with the mean `strength` for the right one: then strength times what is seen
    are the logits of Bayes' rule.
    """
    seen = generator.normal(size=(len(truth), classes)) + strength * np.eye(classes)[truth]
    return torch.from_numpy(temperature * strength * seen)


def make_data(
    rows: int, temperatures: tuple[float, ...], strengths: tuple[float, ...], seed: int = 0, classes: int = 4
) -> PoolData:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    members = [
        make_member(truth, classes, strength, temperature, generator)
        for strength, temperature in zip(strengths, temperatures, strict=True)
    ]
    present = torch.ones(rows, len(members), dtype=torch.bool)
    fold = torch.arange(rows) % POOL_FOLDS
    return PoolData(torch.stack(members), present, torch.from_numpy(truth), fold)


def fit(pool: Any, data: PoolData, takes_weights: bool = True) -> Any:
    return fit_pool(pool, data, PLAIN, takes_weights, lambda done, total: None)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    data = make_data(20_000, (temperature,), (1.5,))
    assert fit_temperature(data.logits[0], data.truth) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_where_another_optimiser_finds_it() -> None:
    data = make_data(150, (3.0,), (1.2,))

    def loss(log: float) -> float:
        nll = torch.nn.functional.cross_entropy(data.logits[0] / math.exp(log), data.truth, reduction="sum").item()
        return nll + 0.5 * (log / PRIOR_SCALE) ** 2

    found = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(data.logits[0], data.truth) == pytest.approx(math.exp(found), rel=1e-4)


def test_rows_without_a_mistake_do_not_make_a_member_infinitely_sure() -> None:
    truth = torch.arange(40) % 4
    logits = torch.nn.functional.one_hot(truth, 4).double()
    assert 0.1 < fit_temperature(logits, truth) < 1


def test_two_independent_calibrated_members_are_fused_as_bayes_would() -> None:
    numbers, _ = fit(log_opinion_pool, make_data(20_000, (1.0, 1.0), (1.2, 1.2)))
    assert numbers.sharpness.item() == pytest.approx(1.0, abs=0.1)
    assert numbers.weights.tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_member_that_is_too_sure_is_cooled_and_counts_as_before() -> None:
    kept, choice = fit(log_opinion_pool, make_data(5_000, (1.0, 3.0), (1.2, 1.2)), takes_weights=False)
    assert kept.temperatures.tolist() == pytest.approx([1.0, 3.0], rel=0.1)
    exponents = kept.weights / kept.temperatures
    assert (exponents[0] / exponents[1]).item() == pytest.approx(1.0)
    assert not choice


def test_weights_are_fitted_where_the_rows_show_that_this_pays() -> None:
    numbers, choice = fit(log_opinion_pool, make_data(5_000, (1.0, 3.0), (1.2, 1.2)))
    assert choice["weights_are_fitted"]
    assert choice["gain"] > 2 * choice["gain_error"] > 0
    assert numbers.weights.tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert numbers.sharpness.item() == pytest.approx(1.0, abs=0.15)


def test_weights_are_kept_where_few_rows_show_nothing() -> None:
    numbers, choice = fit(log_opinion_pool, make_data(60, (1.0, 1.0), (1.2, 1.2)))
    assert not choice["weights_are_fitted"]
    exponents = numbers.weights / numbers.temperatures
    assert (exponents[0] / exponents[1]).item() == pytest.approx(1.0)


@pytest.mark.parametrize("pool", [weighted_mean, log_opinion_pool, maximum])
def test_every_pool_fits_rows_that_come_later_better_than_before(pool: Any) -> None:
    takes_weights = pool is not maximum
    numbers, _ = fit(pool, make_data(1_000, (0.5, 2.0), (1.0, 1.5)), takes_weights)
    later = make_data(4_000, (0.5, 2.0), (1.0, 1.5), seed=1)
    before, after = (torch.nn.functional.nll_loss(fuse(pool, later, used), later.truth).item() for used in (PLAIN, numbers))
    assert after < before - 0.02


@pytest.mark.parametrize("pool", [weighted_mean, log_opinion_pool])
def test_rows_that_lack_a_member_are_fitted_too(pool: Any) -> None:
    data = make_data(900, (1.0, 2.0), (1.0, 1.5))
    present = data.present.clone()
    present[::3, 0] = False
    present[1::3, 1] = False
    logits = data.logits.masked_fill(~present.t()[:, :, None], 0.0)
    numbers, choice = fit(pool, PoolData(logits, present, data.truth, data.fold))
    assert numbers.temperatures.tolist() == pytest.approx([1.0, 2.0], rel=0.2)
    assert torch.cat([numbers.weights, numbers.sharpness.view(1)]).isfinite().all()
    assert math.isfinite(choice["fitted_nll"])
    assert choice["fitted_nll"] == pytest.approx(choice["kept_nll"], rel=0.05)


def test_a_fit_that_ends_in_no_number_is_not_taken_for_one() -> None:
    step = torch.zeros(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="found no finite numbers"):
        minimise(lambda: (step * torch.nan).sum(), [step])


def test_the_same_rows_give_the_same_numbers() -> None:
    (first, why), (second, why_again) = (fit(weighted_mean, make_data(100, (1.0, 2.0), (1.0, 1.0))) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert why == why_again


# --- sharpness --------------------------------------------------------------------------------------------------------


def test_what_one_member_says_stays_what_it_is() -> None:
    logs = torch.tensor([[0.2, 0.8]]).log()
    lone = sharpen(logs, torch.tensor([[1.0, 0.0]]), torch.tensor(3.0))
    assert torch.allclose(lone, logs)


def test_two_members_count_to_the_power_of_one_and_the_sharpness() -> None:
    sharp = sharpen(torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.5, 0.5]]), torch.tensor(1.0)).exp()
    assert torch.allclose(sharp, torch.tensor([[0.04, 0.64]]) / 0.68)


def test_no_member_stays_no_member() -> None:
    even = sharpen(torch.full((1, 4), 0.25).log(), torch.zeros(1, 2), torch.tensor(5.0)).exp()
    assert torch.allclose(even, torch.full((1, 4), 0.25))

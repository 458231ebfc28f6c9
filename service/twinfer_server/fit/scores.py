"""Scores of predictions, with bootstrap intervals, alone and in pairs.

The intervals are percentile intervals over rows drawn with replacement: Efron & Tibshirani 1993, "An introduction to the
bootstrap". Two predictions are compared on the same draws, so what is hard for both does not blur their difference. scikit-learn
scores one set of predictions at a time; here all draws are scored at once, as one product of matrices.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BINS = 15
"""Bins of confidence, of equal width, as in Guo et al. 2017."""
RESAMPLES = 2000
SCORES = ("accuracy", "nll", "brier", "ece")
TINY = float(np.finfo(np.float32).tiny)
"""The probability that stands for 0: served probabilities are float32."""
BLOCK = 20_000_000
"""How many numbers of draws lie in memory at once."""


Interval = dict[str, float]
"""The `value` of all rows, and the range, `low` to `high`, in which 95 % of the resampled rows put it."""


def judge(probabilities: Floats, targets: Flags, present: Flags, is_multi_label: bool = False) -> Floats:
    """Return what each row adds to the scores of a prediction, float64 [rows, 4 + 3 BINS]; all 0 for a row that is not present.

    probabilities, targets: [rows, classes]. present: bool [rows].
    The columns are sums over a row's answers: their number, how many are right, -ln p(truth), the squared distance; then for each
    bin how many answers it holds, their confidence, and how many of them are right. For multi_label every label of a row is an
    answer of its own, yes or no; otherwise a row has one.
    """
    chances, truth = probabilities[:, None, :], targets[:, None, :]
    if is_multi_label:
        chances, truth = np.stack([1 - probabilities, probabilities], axis=-1), np.stack([~targets, targets], axis=-1)
    chances = np.where(present[:, None, None], chances, 0.0)  # [rows, answers, options], and a NaN counts for nothing
    best = chances.argmax(-1)[..., None]
    confidence, right = (np.take_along_axis(values, best, -1)[..., 0].astype(np.float64) for values in (chances, truth))
    nll = -np.log(np.maximum((chances * truth).sum(-1), TINY))
    bins = np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)  # a bin holds its upper edge
    ones = np.ones_like(right)
    parts = [ones, right, nll, ((chances - truth) ** 2).sum(-1)]
    parts += [np.where(bins == number, values, 0.0) for values in (ones, confidence, right) for number in range(BINS)]
    return np.stack([part.sum(1) for part in parts], axis=-1) * present[:, None]


def measure(judged: Floats, seed: int) -> dict[str, Interval]:
    """Return every score with its interval, for what `judge` returns.

    accuracy: the share of answers that are right.
    nll: the mean of -ln p(truth), in nats.
    brier: the mean over answers of the sum over options of (p - truth)^2, 0 to 2. Source: Brier 1950.
    ece: the mean gap between confidence and accuracy, over bins of confidence. Source: Naeini et al. 2015; Guo et al. 2017.
    """
    return {name: _interval(scores) for name, scores in _score(judged, seed).items()}


def compare(one: Floats, other: Floats, seed: int) -> dict[str, Interval]:
    """Return every score of `one` less that of `other`, on the same rows, with the interval of the difference."""
    ours, theirs = _score(one, seed), _score(other, seed)
    return {name: _interval(ours[name] - theirs[name]) for name in SCORES}


def measure_mean(values: Floats, seed: int) -> Interval:
    """Return the mean of values, [rows], with its interval."""
    return _interval(resample(values[:, None], seed)[:, 0] / len(values))


def list_bins(judged: Floats) -> list[dict[str, Any]]:
    """Return the bins of a reliability diagram: how many answers, how sure they are on average, how many of them are right."""
    counts, confidence, right = judged[:, 4:].sum(0).reshape(3, BINS)
    means = [values / np.maximum(counts, 1) for values in (confidence, right)]
    return [
        {"count": int(n), "confidence": float(sure), "accuracy": float(hits)} for n, sure, hits in zip(counts, *means, strict=True)
    ]


def resample(values: Floats, seed: int) -> Floats:
    """Return the column sums of [rows, columns] over all rows, and then over each of RESAMPLES draws of as many rows.

    The same seed draws the same rows, so two scores can be compared draw by draw.
    """
    rows, generator, sums = len(values), np.random.default_rng(seed), [values.sum(0, keepdims=True)]
    block = max(1, min(RESAMPLES, BLOCK // rows))
    for start in range(0, RESAMPLES, block):
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(block, RESAMPLES - start))
        sums.append(counts.astype(np.float64) @ values)
    return np.concatenate(sums)


def _score(judged: Floats, seed: int) -> dict[str, Floats]:
    """Return every score of all rows, and then of each draw, [1 + RESAMPLES]; NaN for a draw without an answer."""
    sums = resample(judged, seed)
    _, confidence, right = np.split(sums[:, 4:], 3, axis=1)
    totals = np.column_stack([sums[:, 1:4], np.abs(right - confidence).sum(1)])
    with np.errstate(invalid="ignore"):
        return dict(zip(SCORES, (totals / sums[:, :1]).T, strict=True))


def _interval(values: Floats) -> Interval:
    """Return the first value, which is of all rows, with the range of the others, which are of the draws."""
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return {"value": float(values[0]), "low": float(low), "high": float(high)}

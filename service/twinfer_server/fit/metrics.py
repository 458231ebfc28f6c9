"""How good predictions are, and how sure one can be of that: scores with bootstrap intervals, alone and in pairs.

The intervals are percentile intervals over rows drawn with replacement: Efron & Tibshirani 1993, "An introduction to the
bootstrap". Two predictions are compared on the same draws, so what both find hard does not blur their difference.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15
"""Of equal width, as in Guo et al. 2017."""
RESAMPLES = 2000
COVERAGE = 0.95
Z = 1.959964
"""The normal distribution's quantile for that coverage."""
SCORES = ("accuracy", "nll", "brier", "ece")
TINY = float(np.finfo(np.float32).tiny)
"""What a probability of 0 counts as: served probabilities are float32."""

BLOCK = 20_000_000
"""How many numbers of draws lie in memory at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score, and the range in which 95 % of the resampled rows put it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram: how many answers, how sure they were on average, how many of them were right."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What each row adds to the scores of one prediction; all 0 for a row that it has no answer for.

    `answers` is the number of answers in each row, [rows]: 1, or the number of labels for multi_label. `sums` holds, by score, the
    sum over a row's answers, [rows]. `gaps` is the sum of right (0 or 1) less confidence, by bin, [rows, BINS].
    """

    answers: Floats
    sums: Mapping[str, Floats]
    gaps: Floats

    def scores(self, draws: Floats) -> dict[str, Floats]:
        """Give every score for each draw; `draws` says how often each row is in it, [draws, rows]."""
        answers = draws @ self.answers
        scores = {name: draws @ values / answers for name, values in self.sums.items()}
        return scores | {"ece": np.abs(draws @ self.gaps).sum(1) / answers}


def judge(probabilities: Floats, targets: NDArray[np.bool_], present: NDArray[np.bool_], is_multi_label: bool = False) -> Judgement:
    """Judge predictions, [rows, classes], by the truth; rows that are not `present`, bool [rows], have no answer.

    accuracy: the share of rows whose most probable class is the right one.
    nll: the mean of -ln p(right class), in nats.
    brier: the mean over rows of the sum over classes of (p - truth)^2, 0 to 2. Source: Brier 1950.
    ece: the mean gap between confidence and accuracy, over bins of confidence. Source: Naeini et al. 2015; Guo et al. 2017.
    For multi_label every label of a row is an answer of its own, yes or no, and the scores are means over all of them.
    """
    chances, truth = _ask(probabilities, targets, is_multi_label)
    chances = np.where(present[:, None, None], chances, 1 / chances.shape[-1])
    counted = np.broadcast_to(present[:, None], chances.shape[:2]).astype(np.float64)
    confidence, right = _confidence(chances, truth)
    values = {
        "accuracy": right,
        "nll": -np.log(np.maximum((chances * truth).sum(-1), TINY)),
        "brier": ((chances - truth) ** 2).sum(-1),
    }
    in_bin = _bin(confidence)[..., None] == np.arange(BINS)
    gaps = (in_bin * ((right - confidence) * counted)[..., None]).sum(1)
    return Judgement(counted.sum(1), {name: (value * counted).sum(1) for name, value in values.items()}, gaps)


def measure(judgement: Judgement, seed: int) -> dict[str, Interval]:
    """Give every score with its interval."""
    return {name: _interval(scores) for name, scores in _score_draws(judgement, seed).items()}


def compare(one: Judgement, other: Judgement, seed: int) -> dict[str, Interval]:
    """Give every score of `one` less that of `other`, on the same rows, with the interval of the difference."""
    ours, theirs = _score_draws(one, seed), _score_draws(other, seed)
    return {name: _interval(ours[name] - theirs[name]) for name in SCORES}


def mean_interval(values: Floats, seed: int) -> Interval:
    """Give the mean of values, [rows], with its interval."""
    drawn = [draws @ values / len(values) for draws in draw_rows(len(values), seed)]
    return _interval(np.concatenate([[values.mean()], *drawn]))


def share_interval(hits: int, count: int) -> Interval:
    """Give a share with its 95 % score interval. Source: Wilson 1927, "Probable inference"."""
    if not count:
        return Interval(math.nan, 0.0, 1.0)
    share, spread = hits / count, Z**2 / count
    middle, half = share + spread / 2, Z * math.sqrt((share * (1 - share) + spread / 4) / count)
    return Interval(share, max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread)))


def reliability(probabilities: Floats, targets: NDArray[np.bool_], is_multi_label: bool = False) -> list[Bin]:
    """Give the bins of a reliability diagram: [rows, classes] predictions and truth, of rows that have an answer."""
    confidence, right = (values.ravel() for values in _confidence(*_ask(probabilities, targets, is_multi_label)))
    bins = _bin(confidence)
    picked = [(confidence[bins == number], right[bins == number]) for number in range(BINS)]
    return [Bin(len(sure), float(sure.mean()), float(hits.mean())) if len(sure) else Bin(0, 0.0, 0.0) for sure, hits in picked]


def draw_rows(rows: int, seed: int) -> Iterator[Floats]:
    """Draw rows with replacement, as often as RESAMPLES says: how often each is drawn, float64 [some draws, rows].

    The same seed draws the same rows, so two scores can be compared draw by draw.
    """
    generator = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, BLOCK // rows))
    for start in range(0, RESAMPLES, block):
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(block, RESAMPLES - start))
        yield counts.astype(np.float64)


def _ask(probabilities: Floats, targets: NDArray[np.bool_], is_multi_label: bool) -> tuple[Floats, NDArray[np.bool_]]:
    """Give chances and truth of each answer's options, [rows, answers, options]: a row's classes, or no and yes to each label."""
    if not is_multi_label:
        return probabilities[:, None, :], targets[:, None, :]
    return np.stack([1 - probabilities, probabilities], axis=-1), np.stack([~targets, targets], axis=-1)


def _confidence(chances: Floats, truth: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Give, for [rows, answers, options], the chance of the likeliest option and whether it is right, [rows, answers]."""
    best = chances.argmax(-1)[..., None]
    right = np.take_along_axis(truth, best, -1)[..., 0].astype(np.float64)
    return np.take_along_axis(chances, best, -1)[..., 0], right


def _bin(confidence: Floats) -> NDArray[np.intp]:
    """Give the bin of each confidence; bin b holds (b / BINS, (b + 1) / BINS]."""
    return np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)


def _score_draws(judgement: Judgement, seed: int) -> dict[str, Floats]:
    """Give every score of all rows, and then of each draw, [1 + RESAMPLES]."""
    rows = len(judgement.answers)
    blocks = [judgement.scores(draws) for draws in itertools.chain([np.ones((1, rows))], draw_rows(rows, seed))]
    return {name: np.concatenate([block[name] for block in blocks]) for name in SCORES}


def _interval(values: Floats) -> Interval:
    """Give the first value, which is of all rows, with the range of the others, which are of the draws."""
    tail = 50 * (1 - COVERAGE)
    low, high = np.nanpercentile(values[1:], (tail, 100 - tail))
    return Interval(float(values[0]), float(low), float(high))

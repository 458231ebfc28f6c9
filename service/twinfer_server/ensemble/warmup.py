"""Warm-up: every bucket is flown under every plan, so that the first caller finds all warm and the faster plan chosen.

Plans are timed as lone flights in interleaved pairs, for a machine's speed drifts. A member's alone time under a plan is what it
takes on that plan's lane with nothing beside it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..errors import InvalidEnsemble
from ..rows import Policy, Request, Row
from .bucket import Bucket, doublings
from .ensemble import Ensemble
from .times import BucketTimes, TimesTable

Choice = TypeVar("Choice", str, int)

MIN_ROUNDS = 3
MAX_ROUNDS = 15
SECONDS_PER_POINT = 0.08
TOO_LONG_SECONDS = 0.5
"""A point twice the size of one that took so long is not flown; it is reckoned from the smaller one."""

LONG_ENOUGH_SECONDS = 0.02
"""A flight on which a second thread would show, if it helps at all."""

Progress = Callable[[int, int], None]
"""Told how many of how many points are done."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One timed flight: fork to join, and each member from start to end, in seconds."""

    wall_seconds: float
    member_seconds: Mapping[int, float]


Fly = Callable[[str, Bucket, tuple[int, ...]], Trial]
"""Flies one blank flight: plan, bucket, the members on board."""


def warm_up(ensemble: Ensemble, on_progress: Progress) -> None:
    """Fly every bucket of `ensemble`, choose its plans and set its `times`. Call it on a thread that the device has prepared."""
    ragged = [member.token_sizes for member in ensemble.members if member.token_sizes[-1]]
    tokens = sorted({size for sizes in ragged for size in sizes}) or [0]
    most = ensemble.spec.batching.max_rows
    rows = (most,) if ensemble.spec.deterministic else doublings(1, most)
    allowed = ("serial", "lanes") if ensemble.spec.plan == "auto" else (ensemble.spec.plan,)
    plans = allowed if len(ensemble.members) > 1 else allowed[:1]

    def fly(plan: str, bucket: Bucket, crew: tuple[int, ...]) -> Trial:
        return _fly_blank(ensemble, plan, bucket, crew)

    with torch.inference_mode():
        _choose_threads(ensemble, [Bucket(count, tokens[-1]) for count in rows])
        measured = measure_buckets(fly, plans, len(ensemble.members), dict.fromkeys(tokens, rows), on_progress)
    ensemble.times = TimesTable(measured)


def _choose_threads(ensemble: Ensemble, buckets: Sequence[Bucket]) -> None:
    """Let the serial plan compute with more than one thread only where that is faster by more than flights scatter."""
    choices = ensemble.device.thread_choices()
    everybody = tuple(range(len(ensemble.members)))
    bucket = buckets[-1]
    for bucket in buckets:
        if _fly_blank(ensemble, "serial", bucket, everybody).wall_seconds > LONG_ENOUGH_SECONDS:
            break
    flights: dict[int, list[float]] = {count: [] for count in choices}
    for _ in _rounds() if len(choices) > 1 else ():
        for count in choices:
            ensemble.device.set_serial_threads(count)
            _fly_blank(ensemble, "serial", bucket, everybody)
            flights[count].append(_fly_blank(ensemble, "serial", bucket, everybody).wall_seconds)
    ensemble.device.set_serial_threads(_choose(flights))


def _fly_blank(ensemble: Ensemble, plan: str, bucket: Bucket, crew: tuple[int, ...]) -> Trial:
    """Fly rows of made-up content and wait for the landing."""
    samples = {index: ensemble.members[index].example(0, bucket.tokens) for index in crew}
    row = Row(
        request=Request(inputs={}, arrived_at=0.0), samples=samples, weights=ensemble.weights, policy=Policy.BEST_EFFORT,
        reply_by=float("inf"), answer=None, ready_at=0.0, decode_seconds=0.0,
    )  # fmt: skip
    slots = {index: ensemble.members[index].slots[0] for index in crew}
    flight = ensemble.board([row] * bucket.samples, slots, {}, plan)
    flight.launch()
    flight.landed.wait()
    for run in flight.runs:
        if run.error is not None:
            raise InvalidEnsemble(f"members.{run.member.name}: failed at warm-up with {bucket.samples} samples: {run.error.text}")
    wall = flight.join_seconds
    assert wall is not None
    return Trial(wall, {run.member.index: run.done.seconds_since(run.started) for run in flight.runs})


def measure_buckets(
    fly: Fly, plans: tuple[str, ...], member_count: int, buckets: Mapping[int, tuple[int, ...]], on_progress: Progress
) -> list[BucketTimes]:  # fmt: skip
    """Measure all buckets, as row counts (ascending) by token count; the first of `plans` is kept unless another is faster."""
    points = [(rows, tokens) for tokens, sizes in buckets.items() for rows in sizes]
    measured: list[BucketTimes] = []
    for done, (rows, tokens) in enumerate(points):
        on_progress(done, len(points))
        smaller = measured[-1] if measured and measured[-1].bucket.tokens == tokens else None
        if smaller is not None and max(smaller.plan_seconds.values()) > TOO_LONG_SECONDS:
            measured.append(_scale(smaller, rows))
        else:
            measured.append(_measure(fly, plans, member_count, Bucket(rows, tokens)))
    on_progress(len(points), len(points))
    return measured


def _measure(fly: Fly, plans: tuple[str, ...], member_count: int, bucket: Bucket) -> BucketTimes:
    everybody = tuple(range(member_count))
    crews = [everybody, *((index,) for index in everybody)] if member_count > 1 else [everybody]
    for plan in plans:
        fly(plan, bucket, everybody)  # the first flight pays for caches and threads
    flights: dict[str, list[float]] = {plan: [] for plan in plans}
    alone: dict[str, list[list[float]]] = {plan: [[] for _ in everybody] for plan in plans}
    for _ in _rounds():
        for crew in crews:
            for plan in plans:
                trial = fly(plan, bucket, crew)
                if crew == everybody:
                    flights[plan].append(trial.wall_seconds)
                if len(crew) == 1:
                    alone[plan][crew[0]].append(trial.member_seconds[crew[0]])
    return BucketTimes(
        bucket=bucket,
        plan=_choose(flights),
        plan_seconds={plan: statistics.median(times) for plan, times in flights.items()},
        alone_seconds={plan: tuple(statistics.median(times) for times in alone[plan]) for plan in plans},
    )


def _rounds() -> Iterator[None]:
    began = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - began > SECONDS_PER_POINT:
            return
        yield


def _choose(flights: Mapping[Choice, list[float]]) -> Choice:
    """Keep the first choice unless another is faster, pair by pair, by more than the pairs scatter."""
    first = best = next(iter(flights))
    best_ratio = 1.0
    for choice, seconds in flights.items():
        if choice != first:
            ratios = [ours / theirs for ours, theirs in zip(seconds, flights[first], strict=True)]
            ratio = statistics.median(ratios)
            scatter = statistics.median(abs(other - ratio) for other in ratios)
            if ratio + scatter < best_ratio:
                best, best_ratio = choice, ratio
    return best


def _scale(smaller: BucketTimes, rows: int) -> BucketTimes:
    factor = rows / smaller.bucket.samples
    return BucketTimes(
        bucket=Bucket(rows, smaller.bucket.tokens),
        plan=smaller.plan,
        plan_seconds={plan: seconds * factor for plan, seconds in smaller.plan_seconds.items()},
        alone_seconds={plan: tuple(value * factor for value in values) for plan, values in smaller.alone_seconds.items()},
    )

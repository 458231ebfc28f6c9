"""Measurements: synthetic batches of an ensemble, in turn and side by side, at every batch size, precision and acceleration.

All setups are loaded first and measured in interleaved rounds, for a machine's speed drifts; ratios are taken round by round.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ..device import Execution
from ..errors import InvalidEnsemble
from ..executor import Bucket, Ensemble, Measurement, make_synthetic_request, run_synthetic, warm_up
from ..executor.latency import doublings
from ..spec import EnsembleSpec
from ..types import Samples

EXECUTIONS: tuple[Execution, Execution] = ("serial", "streams")
OnStage = Callable[[str, int, int], None]

MIN_ROUNDS, MAX_ROUNDS = 5, 61
SECONDS_PER_POINT = 2.0
"""How long one setup is measured at one batch size, unless its `MIN_ROUNDS` take longer."""
MAX_ROUND_SECONDS = 2.0
"""A setup whose rounds take longer is measured at no larger batch size."""
MAX_MADE_UP = 64
"""How many made-up requests are compared with fp32 at most."""
MEDIANS_ERROR = 1.4826 * 1.2533
"""From the median deviation to the standard one, and from the error of a mean to that of a median, for normal scatter."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setup at one batch size; times are medians in seconds, from fork to join.

    `solo_seconds`: each member on its stream with nothing beside it. `speed_up`: serial over streams, with its standard error.
    `overlap_ratio`: the sum of the solo latencies over `streams_seconds`. `requests_per_second`: from launch to
    completion, by execution.
    """

    batch_size: int
    solo_seconds: tuple[float, ...]
    serial_seconds: float
    streams_seconds: float
    speed_up: float
    speed_up_error: float
    overlap_ratio: float
    requests_per_second: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SetupProfile:
    """One precision and acceleration: what it costs, how far it is from fp32 eager, and its points; or why it was refused.

    By member: `parameter_bytes`, `activation_bytes` (of the largest batch) and `member_errors`, the largest error as a part of the
    largest output. `largest_difference` is that of any element of the fused prediction; `top_1` the share of samples
    whose fused class stayed the same, None for tasks without one.
    """

    name: str
    refused: str = ""
    parameter_bytes: tuple[int, ...] = ()
    activation_bytes: tuple[int, ...] = ()
    member_errors: tuple[float, ...] = ()
    largest_difference: float = 0.0
    top_1: float | None = None
    points: tuple[Point, ...] = ()


Load = Callable[[EnsembleSpec], Ensemble]
"""Loads the folder with another spec; raises InvalidEnsemble."""
ReadSamples = Callable[[Ensemble], Sequence[Mapping[int, Samples]]]
"""Reads the samples of requests, by member, on which the setups are compared with fp32."""


def measure_setups(
    spec: EnsembleSpec, precisions: Sequence[str], accelerations: Sequence[str], load: Load, read: ReadSamples, on_stage: OnStage
) -> list[SetupProfile]:  # fmt: skip
    """Load and measure every precision with every acceleration; the folder's own where a list is empty.

    Call it on a thread that the device has prepared, with nothing else in flight. Raises InvalidEnsemble where the ensemble cannot
    even be loaded in fp32 eager.
    """
    with torch.inference_mode():
        plain = _with_setup(spec, "fp32", "eager")
        reference = load(plain)
        samples = read(reference) or make_samples(reference)
        expected = predict(reference, samples)
        ensembles: dict[str, Ensemble] = {}
        profiles: dict[str, SetupProfile] = {}
        setups = list(product(precisions or ("",), accelerations or ("",)))
        for done, (precision, acceleration) in enumerate(setups):
            wanted = _with_setup(spec, precision, acceleration)
            name = _name_setup(wanted)
            on_stage("loading", done, len(setups))
            try:
                ensembles[name] = reference if wanted == plain else load(wanted)
                warm_up(ensembles[name], lambda done, total: None)  # as it is served: with CUDA graphs
            except InvalidEnsemble as error:
                profiles[name] = SetupProfile(name, str(error))
                continue
            profiles[name] = _compare(name, ensembles[name], samples, expected)
        on_stage("loading", len(setups), len(setups))
        for name, points in _measure_points(ensembles, on_stage).items():
            profiles[name] = replace(profiles[name], points=tuple(points))
    return list(profiles.values())


def make_samples(ensemble: Ensemble) -> list[dict[int, Samples]]:
    """Make up the samples of a batch of requests."""
    return [
        {member.index: member.example(seed, member.token_sizes[-1]) for member in ensemble.members}
        for seed in range(min(ensemble.spec.batching.max_batch_size, MAX_MADE_UP))
    ]


def _with_setup(spec: EnsembleSpec, precision: str, acceleration: str) -> EnsembleSpec:
    """Return the spec with this precision and acceleration in every member; "" leaves the folder's own. Any error is tolerated."""
    wanted = {"precision": precision, "acceleration": acceleration}
    update = {key: value for key, value in wanted.items() if value} | {"tolerance": None}
    return spec.model_copy(update={"members": {name: member.model_copy(update=update) for name, member in spec.members.items()}})


def _name_setup(spec: EnsembleSpec) -> str:
    """Name the precision and acceleration of all members, each once."""
    return " / ".join(dict.fromkeys(f"{member.precision} {member.acceleration}" for member in spec.members.values()))


def _compare(name: str, ensemble: Ensemble, samples: Sequence[Mapping[int, Samples]], expected: Tensor) -> SetupProfile:
    """Find what a setup costs in memory, and how far its fused predictions are from those of fp32 eager."""
    found = predict(ensemble, samples)
    difference = (found - expected).abs().max().item()
    is_one_class = ensemble.spec.task == "classification"
    return SetupProfile(
        name,
        parameter_bytes=tuple(member.model.parameter_bytes for member in ensemble.members),
        activation_bytes=tuple(ensemble.memory[member.name].activations for member in ensemble.members),
        member_errors=tuple(member.converted.largest_error for member in ensemble.members),
        largest_difference=difference if math.isfinite(difference) else math.inf,
        top_1=(found.argmax(-1) == expected.argmax(-1)).float().mean().item() if is_one_class else None,
    )


def _measure_points(ensembles: Mapping[str, Ensemble], on_stage: OnStage) -> dict[str, list[Point]]:
    """Measure all setups at 1, 2, 4, ... requests; a setup goes on as long as its rounds take at most `MAX_ROUND_SECONDS`."""
    points: dict[str, list[Point]] = {name: [] for name in ensembles}
    batching = [(ensemble.spec.batching.max_batch_size, ensemble.spec.deterministic) for ensemble in ensembles.values()]
    sizes = [size for most, is_fixed in batching[:1] for size in ((most,) if is_fixed else doublings(1, most))]
    running = dict(ensembles)
    for done, size in enumerate(sizes):
        on_stage("measuring", done, len(sizes))
        rounds: dict[str, list[_Round]] = {name: [] for name in running}
        spent = dict.fromkeys(running, 0.0)
        for number in range(MAX_ROUNDS + 1):
            for name, ensemble in running.items():
                if number <= MIN_ROUNDS or spent[name] < SECONDS_PER_POINT:
                    began = time.perf_counter()
                    rounds[name].append(_measure_round(ensemble, size, is_reversed=number % 2 == 1))
                    spent[name] += time.perf_counter() - began
        for name, measured in rounds.items():
            points[name].append(_summarise(size, measured[1:]))  # the first one pays for caches and threads
            if spent[name] > MAX_ROUND_SECONDS * len(measured):
                del running[name]
    on_stage("measuring", len(sizes), len(sizes))
    return points


@dataclass(frozen=True, slots=True)
class _Round:
    """One batch of all members by each execution, and the seconds of each member by itself on its stream."""

    runs: Mapping[Execution, Measurement]
    solo_seconds: tuple[float, ...]

    @property
    def speed_up(self) -> float:
        return self.runs["serial"].join_seconds / self.runs["streams"].join_seconds


def _measure_round(ensemble: Ensemble, size: int, is_reversed: bool) -> _Round:
    bucket = Bucket(size, max(member.token_sizes[-1] for member in ensemble.members))
    everyone = tuple(range(len(ensemble.members)))
    order = EXECUTIONS[::-1] if is_reversed else EXECUTIONS
    runs = {execution: run_synthetic(ensemble, bucket, everyone, execution) for execution in order}
    solos = [run_synthetic(ensemble, bucket, (index,), "streams") for index in everyone]
    return _Round(runs, tuple(solo.member_seconds[index] for index, solo in enumerate(solos)))


def _summarise(size: int, rounds: Sequence[_Round]) -> Point:
    speed_up = statistics.median(each.speed_up for each in rounds)
    scatter = statistics.median(abs(each.speed_up - speed_up) for each in rounds)
    serial, streams = (statistics.median(each.runs[execution].join_seconds for each in rounds) for execution in EXECUTIONS)
    whole = {execution: statistics.median(each.runs[execution].batch_seconds for each in rounds) for execution in EXECUTIONS}
    return Point(
        batch_size=size,
        solo_seconds=tuple(map(statistics.median, zip(*(each.solo_seconds for each in rounds), strict=True))),
        serial_seconds=serial,
        streams_seconds=streams,
        speed_up=speed_up,
        speed_up_error=MEDIANS_ERROR * scatter / math.sqrt(len(rounds)),
        overlap_ratio=statistics.median(sum(each.solo_seconds) / each.runs["streams"].join_seconds for each in rounds),
        requests_per_second={execution: size / seconds for execution, seconds in whole.items()},
    )


def predict(ensemble: Ensemble, samples: Sequence[Mapping[int, Samples]]) -> Tensor:
    """Compute requests in batches and return their fused predictions, float32 [requests, ...]; raises InvalidEnsemble."""
    predictions = []
    size = ensemble.spec.batching.max_batch_size
    for start in range(0, len(samples), size):
        batch = ensemble.compute([make_synthetic_request(each) for each in samples[start : start + size]])
        try:
            if batch.result is None:
                raise InvalidEnsemble("the members or their fusion failed on the samples; the log says why")
            predictions.append(batch.result.prediction.clone())
        finally:
            ensemble.release(batch)
    return torch.cat(predictions)

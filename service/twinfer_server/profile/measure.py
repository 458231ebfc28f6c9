"""Measurements: synthetic batches of an ensemble, in turn and side by side, at every batch size, precision and acceleration.

All setups are loaded first and measured in interleaved rounds, for a machine's speed drifts; ratios are taken round by round.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..device import Execution
from ..errors import InvalidEnsemble
from ..executor import Bucket, Ensemble, Measurement, make_synthetic_request, run_synthetic, warm_up
from ..executor.latency import doublings
from ..spec import EnsembleSpec
from ..terminal import OnStage
from ..types import Samples

EXECUTIONS: tuple[Execution, Execution] = ("serial", "streams")

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


def measure_setups(
    spec: EnsembleSpec, precisions: Sequence[str], accelerations: Sequence[str], load: Callable[[EnsembleSpec], Ensemble],
    read_samples: Callable[[Ensemble], Sequence[Mapping[int, Samples]]], on_stage: OnStage,
) -> list[SetupProfile]:  # fmt: skip
    """Load the ensemble with each precision and acceleration, compare it with fp32 eager, and measure it at every batch size.

    Without precisions or accelerations, those of the folder's file count. `load` loads the folder with another spec; `read_samples`
    returns the samples of requests, by member, on which the setups are compared.
    Call it on a thread that the device has prepared, with nothing else in flight. Raises InvalidEnsemble where the ensemble cannot
    even be loaded in fp32 eager.
    """
    with torch.inference_mode():
        plain = _with_setup(spec, "fp32", "eager")
        reference = load(plain)
        samples = read_samples(reference)
        expected = _predict(reference, samples)
        ensembles: dict[str, Ensemble | InvalidEnsemble] = {}
        setups = list(product(precisions or ("",), accelerations or ("",)))
        for done, (precision, acceleration) in enumerate(setups):
            wanted = _with_setup(spec, precision, acceleration)
            name = " / ".join(dict.fromkeys(f"{member.precision} {member.acceleration}" for member in wanted.members.values()))
            on_stage("loading", done, len(setups))
            try:
                ensembles[name] = ensemble = reference if wanted == plain else load(wanted)
                warm_up(ensemble, lambda done, total: None)  # as it is served: with CUDA graphs
            except InvalidEnsemble as error:
                ensembles[name] = error
        on_stage("loading", len(setups), len(setups))
        loaded = {name: ensemble for name, ensemble in ensembles.items() if isinstance(ensemble, Ensemble)}
        points = _measure_points(spec, loaded, on_stage)
        return [
            _compare(name, loaded[name], samples, expected, points[name]) if name in loaded else SetupProfile(name, str(refused))
            for name, refused in ensembles.items()
        ]


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


def _predict(ensemble: Ensemble, samples: Sequence[Mapping[int, Samples]]) -> Tensor:
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


def _compare(
    name: str, ensemble: Ensemble, samples: Sequence[Mapping[int, Samples]], expected: Tensor, points: Sequence[Point]
) -> SetupProfile:
    """Find what a setup costs in memory, and how far its fused predictions are from those of fp32 eager."""
    found = _predict(ensemble, samples)
    difference = (found - expected).abs().max().item()
    is_one_class = ensemble.spec.task == "classification"
    return SetupProfile(
        name,
        parameter_bytes=tuple(member.model.parameter_bytes for member in ensemble.members),
        activation_bytes=tuple(ensemble.memory[member.name].activations for member in ensemble.members),
        member_errors=tuple(member.converted.largest_error for member in ensemble.members),
        largest_difference=difference if math.isfinite(difference) else math.inf,
        top_1=(found.argmax(-1) == expected.argmax(-1)).float().mean().item() if is_one_class else None,
        points=tuple(points),
    )


def _measure_points(spec: EnsembleSpec, ensembles: Mapping[str, Ensemble], on_stage: OnStage) -> dict[str, list[Point]]:
    """Measure all setups at 1, 2, 4, ... requests; a setup goes on as long as its rounds take at most `MAX_ROUND_SECONDS`."""
    points: dict[str, list[Point]] = {name: [] for name in ensembles}
    running = dict(ensembles)
    most = spec.batching.max_batch_size
    sizes = (most,) if spec.deterministic else doublings(1, most)
    for done, size in enumerate(sizes):
        on_stage("measuring", done, len(sizes))
        rounds: dict[str, list[_Round]] = {name: [] for name in running}
        spent = dict.fromkeys(running, 0.0)
        for number in range(MAX_ROUNDS + 1):
            for name, ensemble in running.items():
                if number <= MIN_ROUNDS or spent[name] < SECONDS_PER_POINT:
                    began = time.perf_counter()
                    rounds[name].append(_measure_round(ensemble, size, EXECUTIONS[:: -1 if number % 2 else 1]))
                    spent[name] += time.perf_counter() - began
        for name, measured in rounds.items():
            points[name].append(_summarise(size, measured[1:]))  # the first one pays for caches and threads
            if spent[name] > MAX_ROUND_SECONDS * len(measured):
                del running[name]
    on_stage("measuring", len(sizes), len(sizes))
    return points


_Round = tuple[Mapping[Execution, Measurement], Sequence[float]]
"""One batch of all members by each execution, and the seconds of each member by itself on its stream."""


def _measure_round(ensemble: Ensemble, size: int, order: Sequence[Execution]) -> _Round:
    bucket = Bucket(size, max(member.token_sizes[-1] for member in ensemble.members))
    everyone = tuple(range(len(ensemble.members)))
    runs = {execution: run_synthetic(ensemble, bucket, everyone, execution) for execution in order}
    return runs, [run_synthetic(ensemble, bucket, (index,), "streams").member_seconds[index] for index in everyone]


def _summarise(size: int, rounds: Sequence[_Round]) -> Point:
    serial, streams = ([runs[execution].join_seconds for runs, _ in rounds] for execution in EXECUTIONS)
    solos = [solo for _, solo in rounds]
    speed_ups = [in_turn / together for in_turn, together in zip(serial, streams, strict=True)]
    speed_up = statistics.median(speed_ups)
    scatter = statistics.median(abs(each - speed_up) for each in speed_ups)
    return Point(
        batch_size=size,
        solo_seconds=tuple(map(statistics.median, zip(*solos, strict=True))),
        serial_seconds=statistics.median(serial),
        streams_seconds=statistics.median(streams),
        speed_up=speed_up,
        speed_up_error=MEDIANS_ERROR * scatter / math.sqrt(len(rounds)),
        overlap_ratio=statistics.median(sum(solo) / together for solo, together in zip(solos, streams, strict=True)),
        requests_per_second={name: size / statistics.median(runs[name].batch_seconds for runs, _ in rounds) for name in EXECUTIONS},
    )

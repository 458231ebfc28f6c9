"""Warm-up: members and fusion are captured where they can be, and every member is timed alone at every bucket, within seconds.

So the first caller finds all warm, and the scheduler knows what a member takes. Nothing is raced and nothing is kept: which streams
the members run on is the ensemble's `execution`.
"""

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..device import Execution
from ..errors import InvalidEnsemble
from ..types import InferRequest, Policy, Request, Samples
from .ensemble import Ensemble
from .latency import Bucket, LatencyTable, doublings
from .member import Member
from .memory import measure_memory

logger = logging.getLogger(__name__)

ROUNDS = 5
SECONDS_PER_BUCKET = 0.1
"""A member that takes longer at a bucket is timed there only once."""
TOO_LONG_SECONDS = 0.5
"""A bucket twice as large as one that took so long is not run; its latency is reckoned from the smaller one's."""
SEEDS = 4
"""How many different samples there are; making one for every request of a large bucket would take longer than to compute them."""

OnProgress = Callable[[int, int], None]
"""Told how many of how many buckets are done."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One timed batch, in seconds: launch to completion, fork to join, and each member from start to end; and what it predicted."""

    batch_seconds: float
    join_seconds: float
    member_seconds: Mapping[int, float]
    prediction: Tensor


def warm_up(ensemble: Ensemble, on_progress: OnProgress) -> None:
    """Make `ensemble` warm: capture, run and time it, and set its `latencies` and `memory`. Raises InvalidEnsemble.

    Call it on a thread that the device has prepared, with nothing under way.
    """
    with torch.inference_mode():
        for member in ensemble.members:
            if member.device.can_capture:
                member.capture(list_sample_sizes(ensemble, member), ensemble.member_streams[member.index])
            if member.device.can_capture and member.no_graph_reason:
                logger.warning("member %s has no CUDA graphs: %s", member.name, member.no_graph_reason)
        ensemble.fusion = ensemble.capture(ensemble.fusion)
        measured: dict[int, dict[Bucket, float]] = {member.index: {} for member in ensemble.members}
        points = [
            (member, Bucket(samples, tokens))
            for member in ensemble.members
            for tokens in member.token_sizes
            for samples in list_sample_sizes(ensemble, member)
        ]
        for done, (member, bucket) in enumerate(points):
            on_progress(done, len(points))
            known = measured[member.index]
            smaller = max((size for size in known if size.tokens == bucket.tokens), default=None)
            if smaller is not None and known[smaller] > TOO_LONG_SECONDS:
                known[bucket] = known[smaller] * bucket.samples / smaller.samples
            else:
                known[bucket] = _time_alone(ensemble, member, bucket)
        _run_together(ensemble, measured)
        on_progress(len(points), len(points))
        ensemble.latencies = LatencyTable(measured)
        ensemble.memory = {member.name: measure_memory(member) for member in ensemble.members}


def list_sample_sizes(ensemble: Ensemble, member: Member) -> tuple[int, ...]:
    """List the sample counts that a member is captured and timed at."""
    return (member.max_samples,) if ensemble.spec.deterministic else doublings(1, member.max_samples)


def run_synthetic(ensemble: Ensemble, bucket: Bucket, members: tuple[int, ...], execution: Execution | None = None) -> Measurement:
    """Run a batch of made-up samples with the members of these indexes and wait for it; nothing else may be under way.

    Call it in inference mode, on a thread that the device has prepared. Raises InvalidEnsemble where a member or the fusion fails.
    """
    examples = [
        {index: ensemble.members[index].example(seed, bucket.tokens) for index in members}
        for seed in range(min(SEEDS, bucket.samples))
    ]
    count = min(bucket.samples, ensemble.spec.batching.max_batch_size)
    requests = []
    for number in range(count):
        several = bucket.samples // count + (number < bucket.samples % count)  # more than one only where a member takes several
        samples = examples[number % len(examples)]
        repeated = {index: tuple(np.repeat(array, several, axis=0) for array in arrays) for index, arrays in samples.items()}
        requests.append(make_synthetic_request(repeated if several > 1 else samples))
    batch = ensemble.compute(requests, execution)
    try:
        for run in batch.runs:
            if not run.is_whole:
                causes = [error.text for error in run.errors.values()] or ["it raised on them together; the log has it"]
                raise InvalidEnsemble(f"members.{run.member.name}: failed on {bucket.samples} made-up samples: {causes[0]}")
        join, result = batch.join_seconds, batch.result
        if join is None or result is None:
            raise InvalidEnsemble(f"fusion.method: {ensemble.spec.fusion.method!r} raised on made-up samples; the log has it")
        seconds = {run.member.index: run.device_seconds or join for run in batch.runs}
        return Measurement(batch.completed.seconds_since(batch.started), join, seconds, result.prediction.clone())
    finally:
        ensemble.release(batch)


def make_synthetic_request(samples: Mapping[int, Samples]) -> Request:
    """Make a request of made-up samples, by member index, that no caller waits for."""
    return Request(InferRequest({}, arrived_at=0.0), Policy.BEST_EFFORT, None, reply_by=float("inf"), samples=samples)


def _time_alone(ensemble: Ensemble, member: Member, bucket: Bucket) -> float:
    """Return a member's median time at a bucket, without its upstream members; the first run pays for caches and threads."""
    run_synthetic(ensemble, bucket, (member.index,))
    times: list[float] = []
    until = time.perf_counter() + SECONDS_PER_BUCKET
    while len(times) < ROUNDS and (not times or time.perf_counter() < until):
        times.append(run_synthetic(ensemble, bucket, (member.index,)).member_seconds[member.index])
    return statistics.median(times)


def _run_together(ensemble: Ensemble, measured: Mapping[int, Mapping[Bucket, float]]) -> None:
    """Run all members together once at the smallest and the largest bucket that was run."""
    everyone = tuple(range(len(ensemble.members)))
    tokens = max(member.token_sizes[-1] for member in ensemble.members)
    for samples in {1, ensemble.spec.batching.max_batch_size}:
        if sum(LatencyTable(measured).solo_seconds(index, Bucket(samples, tokens)) for index in everyone) < 2 * TOO_LONG_SECONDS:
            run_synthetic(ensemble, Bucket(samples, tokens), everyone)

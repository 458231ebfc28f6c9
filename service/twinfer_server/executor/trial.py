"""Trials: flights of made-up rows, timed, for warm-up and for measurements."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import InvalidEnsemble
from ..types import InferRequest, Policy, Request
from .bucket import Bucket
from .ensemble import Ensemble

SEEDS = 4
"""How many different samples there are; making one for every row of a large bucket would take longer than to fly them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One timed flight: launch to landing, fork to join and each member from start to end, in seconds; and what it fused."""

    flight_seconds: float
    wall_seconds: float
    member_seconds: Mapping[int, float | None]
    fused: Tensor


def fly_blank(ensemble: Ensemble, execution: str, bucket: Bucket, crew: tuple[int, ...]) -> Trial:
    """Fly made-up rows with the members `crew` and wait for the landing; nothing else may be in the air.

    Call it in inference mode, on a thread that the device has prepared. Raises InvalidEnsemble where a member or the fusion fails.
    """
    seeds = [
        {index: ensemble.members[index].example(seed, bucket.tokens) for index in crew}
        for seed in range(min(SEEDS, bucket.samples))
    ]
    rows = [
        Request(
            request=InferRequest(inputs={}, arrived_at=0.0),
            policy=Policy.BEST_EFFORT,
            weights=None,
            reply_by=float("inf"),
            samples=seeds[number % len(seeds)],
        )
        for number in range(bucket.samples)
    ]
    flight = ensemble.board(rows, {index: ensemble.members[index].slots[0] for index in crew}, {}, execution)
    flight.launch()
    flight.landed.wait()
    for run in flight.runs:
        if run.error is not None:
            raise InvalidEnsemble(f"members.{run.member.name}: failed with {bucket.samples} made-up rows: {run.error.text}")
    wall, fused = flight.join_seconds, flight.fused
    if wall is None or fused is None:
        raise InvalidEnsemble(f"fusion.method: {ensemble.spec.fusion.method!r} raised on made-up rows; the log has it")
    whole = flight.landed.seconds_since(flight.started)
    return Trial(whole, wall, {run.member.index: run.seconds for run in flight.runs}, fused.prediction)


def make_blank_row(ensemble: Ensemble, index: int) -> Request:
    """Make a row of made-up input for one member, that nobody waits for."""
    member = ensemble.members[index]
    samples = {index: member.example(0, member.token_sizes[0])}
    request = InferRequest(inputs={}, arrived_at=0.0)
    return Request(request, Policy.BEST_EFFORT, None, reply_by=float("inf"), samples=samples)

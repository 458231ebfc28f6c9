"""From a flight to its rows' answers: what became of each member, and whether that is enough for the row's policy."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InternalError, MemberFailed, MemberLate, MemberOff, NotFinite, NothingToFuse, TwinferError
from ..fusion import FusionResult
from ..types import DEGRADING, Attribution, MemberResult, Policy, Request, Response, State, Timings
from .attribution import find_influences
from .flight import Flight
from .run import Run

STATE_OF_ERROR = {MemberFailed: State.FAILED, NotFinite: State.FAILED, MemberLate: State.LATE, MemberOff: State.OFF}


class _Facts(NamedTuple):
    """What all rows of a flight share: the runs by member, their spans, and the members that were done in time (None: all).

    `plain` keeps, by their weights, what is said of members that are all OK, for rows that ask no more: the same for all.
    """

    flight: Flight
    runs: Mapping[int, Run]
    spans: Mapping[int, float | None]
    done: Collection[int] | None
    plain: dict[tuple[float, ...], tuple[MemberResult, ...]]


def answer_rows(
    flight: Flight, rows: Sequence[Request], fused: FusionResult, device_seconds: float, done: Collection[int] | None = None,
    unsure: Collection[int] = (),
) -> list[Response | TwinferError]:  # fmt: skip
    """Judge `rows` of `flight` by `fused`, which has them in the same order: each gets an answer, or the error it ends with.

    Call it when the flight has landed, or, for rows that cannot wait, with what `Flight.fuse_now` made of the members so far and
    with those that were `done`, by index, before it did (by default: now); one that has ended since is late all the same. `unsure`
    are the places of rows for which members that nobody has asked yet are late, not skipped.
    """
    prediction = fused.prediction.numpy()
    weights, present, disagreement = fused.weights.tolist(), fused.present.tolist(), fused.disagreement.tolist()
    is_complete = fused.present.all(1).tolist()
    runs = {run.member.index: run for run in flight.runs}
    facts = _Facts(flight, runs, {index: run.seconds for index, run in runs.items()}, done, {})
    ratio, version = flight.overlap_ratio, flight.crew.version
    explained = [place for place, row in enumerate(rows) if row.request.wants_explanation]
    influences = find_influences(flight, rows, fused, explained) if explained else {}
    answers: list[Response | TwinferError] = []
    for place, row in enumerate(rows):
        timings = Timings(
            decode_seconds=row.decode_seconds,
            queue_seconds=flight.launched_at - row.ready_at - row.flown_seconds,
            device_seconds=device_seconds + row.flown_seconds,
            batch_size=len(flight.rows),
            overlap_ratio=ratio,
            execution=flight.execution.name,
            buffer_wait_seconds=flight.boarded_at - row.blocked_at if row.blocked_at else 0.0,
        )
        # The fusion gives NaN where fewer than two members took part.
        apart = disagreement[place] if disagreement[place] == disagreement[place] else None
        own = _cut(flight, row, prediction[place]) if version.spec.task == "similarity" else prediction[place]
        if is_complete[place] and _asks_no_more(row):
            answers.append(Response(own, _tell_all_ok(facts, tuple(weights[place])), apart, timings, version.number))
            continue
        members = tuple(
            _judge_member(facts, row, index, weights[place][index], present[place][index], influences.get((place, index)))
            for index in range(len(flight.crew.members))
        )
        if place in unsure:
            members = tuple(_miss(flight, index) if part.state is State.SKIPPED else part for index, part in enumerate(members))
        answers.append(_judge_row(facts, row, own, members, apart, timings))
    return answers


def fusion_failure(flight: Flight) -> list[Response | TwinferError]:
    """Give every row of a flight whose fusion raised the same error."""
    return [InternalError("the fusion raised an error; the server's log has it") for _ in flight.rows]


def _cut(flight: Flight, row: Request, prediction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut off the places, of a likeness to several texts, that only other rows of the flight have."""
    counts = {index: len(samples[0]) for index, samples in row.samples.items()}
    return prediction[: flight.crew.version.host_fusion.prediction_length(counts)]


def _judge_row(
    facts: _Facts, row: Request, prediction: NDArray[np.float32], members: tuple[MemberResult, ...], disagreement: float | None,
    timings: Timings,
) -> Response | TwinferError:  # fmt: skip
    """Apply the row's policy."""
    number = facts.flight.crew.version.number
    if all(member.state is State.OK for member in members):
        return Response(prediction, members, disagreement, timings, number)
    lost = [member.error for member in members if member.state in DEGRADING and member.error is not None]
    if row.policy is Policy.REQUIRE_ALL and lost:
        return lost[0]
    needed = [members[index] for index in facts.flight.crew.version.host_fusion.needed_by(row.samples.keys())]
    missing = next((member for member in needed if member.state is not State.OK), None)
    if missing is not None:
        return missing.error or NothingToFuse("a member without which there is no answer has no output for this row")
    if not any(member.state is State.OK for member in members):
        causes = "; ".join(f"{error.member}: {error.text}" for error in lost)
        if len(lost) == 1:
            return lost[0]
        kinds = {type(error) for error in lost}
        kind = kinds.pop() if len(kinds) == 1 and kinds <= {MemberLate, MemberOff} else NothingToFuse
        return kind(f"no member has an output for this row: {causes}")
    return Response(prediction, members, disagreement, timings, number)


def _judge_member(
    facts: _Facts, row: Request, index: int, weight: float, is_present: bool, attribution: Attribution | None
) -> MemberResult:  # fmt: skip
    """Say what became of one member for one row: in this flight, or in an earlier one."""
    flight, run, part = facts.flight, facts.runs.get(index), row.parts.get(index)
    wants_output = row.request.wants_member_predictions or row.request.wants_explanation
    member, number = flight.crew.members[index], flight.number_of(row)
    if index not in row.samples:
        return MemberResult(State.NO_INPUT)
    seconds = part.device_seconds if part else facts.spans.get(index)
    error = part.error if part else flight.left_out.get((number, index))
    is_aboard = part is None and run is not None and number in run.firsts
    if error is None and is_aboard:
        assert run is not None
        if run.error is not None:
            error = run.error
        elif not is_present and not (run.done.is_done() if facts.done is None else index in facts.done):
            error = MemberLate("the member was not ready when the row had to be answered", member=member.name)
    if error is None and not is_aboard and part is None:
        return MemberResult(State.SKIPPED)
    if error is None and not is_present and member.is_voter:
        or_what = ", or with a probability that is none" if member.spec.output.kind == "probabilities" else ""
        error = NotFinite(f"the member answered with NaN or an infinity{or_what}", member=member.name)
    if error is not None:
        return MemberResult(STATE_OF_ERROR[type(error)], device_seconds=seconds, error=error)
    output = _believe(facts, row, index) if member.is_voter and wants_output else None
    if part is not None:
        return MemberResult(State.OK, weight, seconds, output, None, part.solo_seconds, part.used_cuda_graph, attribution)
    return replace(_tell_ok(facts, index, weight), output=output, attribution=attribution)


def _asks_no_more(row: Request) -> bool:
    """Whether a row asks for nothing of its members' own, and has flown only once: who is present has answered in this flight."""
    return not (row.parts or row.request.wants_member_predictions or row.request.wants_explanation)


def _tell_all_ok(facts: _Facts, weights: tuple[float, ...]) -> tuple[MemberResult, ...]:
    """Say of all members that they have answered in this flight; the same objects for all rows of the same weights."""
    if weights not in facts.plain:
        facts.plain[weights] = tuple(_tell_ok(facts, index, weight) for index, weight in enumerate(weights))
    return facts.plain[weights]


def _tell_ok(facts: _Facts, index: int, weight: float) -> MemberResult:
    """Say of a member that it has answered in this flight."""
    flight, run = facts.flight, facts.runs[index]
    alone = flight.solo_seconds[flight.runs.index(run)] if flight.solo_seconds else None
    return MemberResult(State.OK, weight, facts.spans[index], solo_seconds=alone, used_cuda_graph=run.used_cuda_graph)


def _miss(flight: Flight, index: int) -> MemberResult:
    """Say of a member that would have been asked next that there was no time for it."""
    text = "the first member was not sure, and no time was left for this one"
    return MemberResult(State.LATE, error=MemberLate(text, member=flight.crew.members[index].name))


def _believe(facts: _Facts, row: Request, index: int) -> NDArray[np.float32]:
    """Give the member's own calibrated prediction for a row, float32 [...], or [samples, ...] where it may have several."""
    flight, part = facts.flight, row.parts.get(index)
    output = part.output if part else facts.runs[index].sample_of(flight.number_of(row))
    belief = flight.crew.version.host_fusion.member_prediction(index, torch.from_numpy(output)).numpy()
    values: NDArray[np.float32] = belief if flight.crew.members[index].samples_per_row > 1 else belief[0]
    return values

"""From a flight to its rows' answers: what became of each member, and whether that is enough for the row's policy."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError, MemberFailed, MemberLate, NotFinite, NothingToFuse, TwinferError
from ..fusion import Fused
from ..rows import DEGRADING, Answer, MemberAnswer, Policy, Row, State, Timings
from .flight import Flight
from .run import Run

STATE_OF_ERROR = {MemberFailed: State.FAILED, NotFinite: State.FAILED, MemberLate: State.LATE}


def answer_rows(
    flight: Flight, rows: Sequence[Row], fused: Fused, device_seconds: float, done: Collection[int] | None = None
) -> list[Answer | TwinferError]:  # fmt: skip
    """Judge `rows` of `flight` by `fused`, which has them in the same order: each gets an answer, or the error it ends with.

    Call it when the flight has landed, or, for rows that cannot wait, with what `Flight.fuse_now` made of the members so far and
    with those that were `done`, by index, before it did (by default: now); one that has ended since is late all the same.
    """
    prediction = fused.prediction.numpy()
    weights, present, disagreement = fused.weights.tolist(), fused.present.tolist(), fused.disagreement.tolist()
    spans = {run.member.index: run.seconds for run in flight.runs}
    ratio = flight.overlap_ratio
    runs = {run.member.index: run for run in flight.runs}
    answers: list[Answer | TwinferError] = []
    for place, row in enumerate(rows):
        members = tuple(
            _judge_member(
                flight,
                row,
                runs.get(index),
                index,
                weights[place][index],
                present[place][index],
                spans.get(index),
                done,
            )
            for index in range(len(flight.crew.members))
        )
        timings = Timings(
            decode_seconds=row.decode_seconds,
            queue_seconds=flight.launched_at - row.ready_at,
            device_seconds=device_seconds,
            flight_rows=len(flight.rows),
            overlap_ratio=ratio,
            plan=flight.plan.name,
            slot_wait_seconds=flight.boarded_at - row.blocked_at if row.blocked_at else 0.0,
        )
        # The fusion gives NaN where fewer than two members took part.
        apart = disagreement[place]
        answers.append(_judge_row(row, prediction[place], members, apart if apart == apart else None, timings))
    return answers


def fusion_failure(flight: Flight) -> list[Answer | TwinferError]:
    """Give every row of a flight whose fusion raised the same error."""
    return [InternalError("the fusion raised an error; the server's log has it") for _ in flight.rows]


def _judge_row(
    row: Row, prediction: NDArray[np.float32], members: tuple[MemberAnswer, ...], disagreement: float | None, timings: Timings
) -> Answer | TwinferError:  # fmt: skip
    """Apply the row's policy."""
    lost = [member.error for member in members if member.state in DEGRADING and member.error is not None]
    if row.policy is Policy.REQUIRE_ALL and lost:
        return lost[0]
    if not any(member.state is State.OK for member in members):
        causes = "; ".join(f"{error.member}: {error.text}" for error in lost)
        if len(lost) == 1:
            return lost[0]
        is_late = all(isinstance(error, MemberLate) for error in lost)
        return (MemberLate if is_late else NothingToFuse)(f"no member has an output for this row: {causes}")
    return Answer(prediction, members, disagreement, timings)


def _judge_member(
    flight: Flight, row: Row, run: Run | None, index: int, weight: float, is_present: bool, seconds: float | None,
    done: Collection[int] | None,
) -> MemberAnswer:  # fmt: skip
    """Say what became of one member for one row."""
    member = flight.crew.members[index]
    number = flight.number_of(row)
    if index not in row.samples:
        return MemberAnswer(State.NO_INPUT)
    error = flight.left_out.get((number, index))
    if error is None and run is not None:
        if run.error is not None:
            error = run.error
        elif not is_present and not (run.done.is_done() if done is None else index in done):
            error = MemberLate("the member was not ready when the row had to be answered", member=member.name)
        elif not is_present:
            error = NotFinite("the member answered with NaN or an infinity", member=member.name)
    if error is not None:
        return MemberAnswer(STATE_OF_ERROR[type(error)], device_seconds=seconds, error=error)
    assert run is not None
    output = None
    if row.request.wants_member_predictions:
        assert run.host_output is not None
        sample = run.positions[number]
        belief = flight.crew.host_fusion.belief(index, run.host_output[sample : sample + 1])
        output = belief[0].numpy().copy()  # not a view of the slot
    alone = flight.alone_seconds[flight.runs.index(run)] if flight.alone_seconds else None
    return MemberAnswer(State.OK, weight, seconds, output, alone_seconds=alone, was_captured=run.was_captured)

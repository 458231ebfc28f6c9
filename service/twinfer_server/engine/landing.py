"""Landing: what becomes of a flight's rows when it has landed, or when they cannot wait for that. Knows no threads and no locks."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InternalError, TwinferError
from ..executor import Ensemble, Flight, answer_rows, fusion_failure
from ..fusion import FusionResult
from ..types import Policy, Request, Response

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Landing:
    """A flight that has landed: the rows that are answered now, with their answers, and those that a cascade sends on."""

    flight: Flight
    rows: Sequence[Request]
    answers: Sequence[Response | TwinferError]
    going_on: Sequence[Request]
    fused: FusionResult | None

    def find_failures(self) -> dict[int, str]:
        """Say, by member index, what was wrong with a member, or nothing; one that failed for want of its feeder is left out.

        A fusion that raised is not the members' fault.
        """
        failures = {}
        present = None if self.fused is None else self.fused.present.numpy()
        for run in self.flight.runs:
            if run.is_starved:
                continue
            index = run.member.index
            failures[index] = run.error.text if run.error is not None else ""
            if not failures[index] and present is not None and run.member.is_voter and not present[list(run.rows), index].any():
                failures[index] = "no output was finite"
        return failures


def land(flight: Flight, ensemble: Ensemble, seconds: float) -> Landing:
    """Judge all rows of a flight that has landed after so many `seconds`."""
    rows, going_on, fused = flight.rows, [], None
    try:
        fused = flight.fused if flight.fused is not None else flight.fuse_now(rows)
        answers = answer_rows(flight, rows, fused, seconds)
        going_on = _find_going_on(flight, ensemble, answers)
    except Exception:
        logger.exception("fusing a flight of %d rows failed", len(rows))
        answers = fusion_failure(flight)
    if not going_on:
        return Landing(flight, rows, answers, (), fused)
    staying = [place for place, row in enumerate(rows) if row not in going_on]
    return Landing(flight, [rows[place] for place in staying], [answers[place] for place in staying], going_on, fused)


def judge_late(flight: Flight, ensemble: Ensemble, rows: Sequence[Request], now: float) -> list[Response | TwinferError]:
    """Judge rows that cannot wait for the landing, from the members so far; the slots must not be freed meanwhile."""
    if not rows:
        return []
    done = flight.done_members
    unsure = ensemble.cascade.find_unsure(flight, rows) if ensemble.cascade else ()
    try:
        return answer_rows(flight, rows, flight.fuse_now(rows), now - flight.launched_at, done, unsure)
    except Exception:
        logger.exception("fusing %d late rows failed", len(rows))
        return [InternalError("the fusion raised an error; the server's log has it") for _ in rows]


def judge_between(ensemble: Ensemble, row: Request, errors: Mapping[int, TwinferError]) -> Response | TwinferError:
    """Answer a row that waits for its second flight from what its first one gave; a flight that never takes off does it.

    `errors` say, by member index, what keeps each member of the second one from it.
    """
    left_out = {(0, index): error for index, error in errors.items()}
    flight = ensemble.board([row], {}, left_out, "serial")
    flight.launched_at = flight.boarded_at = time.monotonic()
    return answer_rows(flight, [row], flight.fuse_now([row]), 0.0)[0]


def _find_going_on(flight: Flight, ensemble: Ensemble, answers: Sequence[Response | TwinferError]) -> list[Request]:
    """Find the rows that a cascade sends on to its other members, for what the first one says is not enough."""
    unsure = ensemble.cascade.find_unsure(flight, flight.rows) if ensemble.cascade else []
    # Under REQUIRE_ALL a failure of the first member is the end already.
    return [
        flight.rows[place]
        for place in unsure
        if isinstance(answers[place], Response) or flight.rows[place].policy is Policy.BEST_EFFORT
    ]

"""What becomes of requests: when their batch is complete, when they cannot wait for that, and when no batch is left for them."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import TwinferError
from ..executor import Batch, Ensemble, find_refusal, fusion_failures, make_responses
from ..fusion import FusionResult
from ..types import Policy, Request, Response

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a complete batch gave: the fused result, None where the fusion raised, and a response for each of its requests.

    `escalated` are the indices of the requests that a cascade sends on to its other members.
    """

    result: FusionResult | None
    responses: Sequence[Response | TwinferError]
    escalated: Collection[int]

    def find_failures(self, batch: Batch) -> dict[int, str]:
        """Say, by member index, what was wrong with a member, or nothing; a failure upstream counts once.

        A fusion that raised is not the members' fault, nor is what a member raises on some requests and not on its own samples.
        """
        failures = {}
        present = None if self.result is None else self.result.present.tolist()
        for run in batch.runs:
            index = run.member.index
            if run.fault is not None:
                failures[index] = run.fault
            if failures.get(index) == "" and present and run.member.is_fused and not any(present[n][index] for n in run.indices):
                failures[index] = "no output was finite"
        return failures


def complete(ensemble: Ensemble, batch: Batch, seconds: float) -> Completion:
    """Make the responses of a batch that is complete after so many seconds."""
    indices, result = range(len(batch.requests)), None
    try:
        result = batch.result or batch.fuse(indices)
        responses = make_responses(batch, indices, result, seconds)
        unsure = ensemble.cascade.find_unsure(batch, indices) if ensemble.cascade else ()
    except Exception:
        logger.exception("fusing a batch of %d requests failed", len(indices))
        return Completion(result, fusion_failures(len(indices)), ())
    # Under REQUIRE_ALL a failure of the first member is the end already.
    escalated = [n for n in unsure if isinstance(responses[n], Response) or batch.requests[n].policy is Policy.BEST_EFFORT]
    return Completion(result, responses, escalated)


def respond_from_done(ensemble: Ensemble, batch: Batch, late: Sequence[int], now: float) -> list[Response | TwinferError]:
    """Answer the requests with these indices from the members that are done; the batch's buffers must not be released meanwhile."""
    done = batch.done_members
    try:
        unsure = ensemble.cascade.find_unsure(batch, late) if ensemble.cascade else ()
        return make_responses(batch, late, batch.fuse(late), now - batch.launched_at, done, unsure)
    except Exception:
        logger.exception("fusing %d late requests failed", len(late))
        return fusion_failures(len(late))


def respond_from_partials(ensemble: Ensemble, request: Request, lost: Mapping[int, TwinferError]) -> Response | TwinferError:
    """Answer a request that waits for its second batch from what its first one gave; `lost` keeps each other member from it."""
    batch = ensemble.form_batch([request], {}, {(0, index): error for index, error in lost.items()})
    try:
        batch.scheduled_at = batch.launched_at = time.monotonic()
        return make_responses(batch, [0], batch.fuse([0]), 0.0)[0]
    finally:
        ensemble.release(batch)


def refuse(ensemble: Ensemble, request: Request, lost: Mapping[int, TwinferError]) -> TwinferError | None:
    """Return the error that a request ends with without the members in `lost`; None if the others, or earlier batches, suffice."""
    known = {index: partial.error for index, partial in request.partials.items() if partial.error is not None}
    asked = [index for index in request.samples if index in request.members or index in request.partials]
    return find_refusal(ensemble.fusion, request.policy, asked, {**known, **lost})

"""From a batch to its requests' responses: what became of each member, and whether that is enough for the request's policy."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InternalError, MemberFailed, MemberLate, MemberOff, NotFinite, NothingToFuse, TwinferError
from ..fusion import FusionResult, attribution_delta
from ..types import DEGRADING, Attribution, MemberResult, Policy, Request, Response, State, Timings
from .batch import Batch
from .fusion_versions import FusionVersion

STATE_OF_ERROR = {MemberFailed: State.FAILED, NotFinite: State.FAILED, MemberLate: State.LATE, MemberOff: State.OFF}


def find_refusal(
    version: FusionVersion, policy: Policy, asked: Collection[int], lost: Mapping[int, TwinferError]
) -> TwinferError | None:  # fmt: skip
    """Return the error that a request ends with under `policy` without the members in `lost`; None if the others can answer it.

    The one answer to "may these members answer this request?": at admission, when a batch is formed, when it completes and for a
    late request. `asked` are the members that the request gives samples, by index; `lost` says why one of them takes no part.
    """
    if not lost:
        return None
    if policy is Policy.REQUIRE_ALL:
        return lost[min(lost)]
    fusion = version.host_fusion
    for index in sorted(fusion.needed_by(asked)):
        if index in lost:
            return lost[index]
        if index not in asked:
            return NothingToFuse("a member without which there is no answer has no input in this request")
    fused = [index for index in sorted(asked) if index in fusion.fused_members]
    if any(index not in lost for index in fused):
        return None
    errors = [lost[index] for index in fused] or list(lost.values())
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 and kinds <= {MemberLate, MemberOff} else NothingToFuse
    causes = "; ".join(f"{error.member}: {error.text}" for error in errors)
    return kind(f"no member has an output for this request: {causes}")


def make_responses(
    batch: Batch, indices: Sequence[int], fused: FusionResult, device_seconds: float, done: Collection[int] | None = None,
    unsure: Collection[int] = (),
) -> list[Response | TwinferError]:  # fmt: skip
    """Make the response or the error of each request with these indices, from `fused`, which has them in the same order.

    Call it when the batch is complete, or, for requests that cannot wait, with what `Batch.fuse` made of the members so far and
    with those that were `done`, by index, before it did (None: all that are now); one that has ended since is late all the same.
    `unsure` are the requests for which members of a cascade that have not been asked yet are late, not skipped.
    """
    return _Judge(batch, indices, fused, device_seconds, done, unsure).judge_all()


def fusion_failures(count: int) -> list[Response | TwinferError]:
    """Make the same error for each of `count` requests of a batch whose fusion raised."""
    return [InternalError("the fusion raised an error; the server's log has it") for _ in range(count)]


class _Judge:
    """Judges the requests of one batch; what is the same for all of them is found once."""

    def __init__(
        self, batch: Batch, indices: Sequence[int], fused: FusionResult, device_seconds: float, done: Collection[int] | None,
        unsure: Collection[int],
    ) -> None:  # fmt: skip
        self._batch, self._indices, self._unsure = batch, indices, unsure
        self._done = batch.done_members if done is None else done
        self._prediction = fused.prediction.numpy()
        self._weights, self._present = fused.weights.tolist(), fused.present.tolist()
        self._disagreement = fused.disagreement.tolist()
        self._device_seconds = device_seconds
        self._overlap_ratio = batch.overlap_ratio
        self._seconds = {run.member.index: run.device_seconds for run in batch.runs}
        self._all_ok: dict[tuple[float, ...], tuple[MemberResult, ...]] = {}
        """By weights: the same tuple for all requests that ask no more than that every member is OK."""
        explained = [place for place, index in enumerate(indices) if batch.requests[index].request.wants_explanation]
        self._attributions = find_attributions(batch, indices, fused, explained) if explained else {}

    def judge_all(self) -> list[Response | TwinferError]:
        return [self._judge(place, index, self._batch.requests[index]) for place, index in enumerate(self._indices)]

    def _judge(self, place: int, index: int, request: Request) -> Response | TwinferError:
        wants_own = request.request.wants_member_predictions or request.request.wants_explanation
        if all(self._present[place]) and not wants_own and not request.partials:
            weights = tuple(self._weights[place])
            if weights not in self._all_ok:
                self._all_ok[weights] = tuple(self._ok(member, weight) for member, weight in enumerate(weights))
            return self._respond(place, request, self._all_ok[weights])
        members = tuple(self._judge_member(place, index, request, member) for member in range(len(self._batch.members)))
        lost = {number: member.error for number, member in enumerate(members) if member.state in DEGRADING and member.error}
        asked = [number for number, member in enumerate(members) if member.state not in (State.NO_INPUT, State.SKIPPED)]
        return find_refusal(self._batch.version, request.policy, asked, lost) or self._respond(place, request, members)

    def _respond(self, place: int, request: Request, members: tuple[MemberResult, ...]) -> Response:
        batch, version = self._batch, self._batch.version
        timings = Timings(
            decode_seconds=request.decode_seconds,
            queue_seconds=batch.launched_at - request.ready_at - request.earlier_seconds,
            device_seconds=self._device_seconds + request.earlier_seconds,
            batch_size=len(batch.requests),
            overlap_ratio=self._overlap_ratio,
            execution=batch.execution,
            buffer_wait_seconds=batch.scheduled_at - request.blocked_at if request.blocked_at else 0.0,
        )
        prediction = self._prediction[place]
        if version.spec.task == "similarity":  # of the texts compared, only the request's own
            counts = {member: len(samples[0]) for member, samples in request.samples.items()}
            prediction = prediction[: version.host_fusion.prediction_length(counts)]
        disagreement = self._disagreement[place]
        # NaN where fewer than two members took part. A copy, for the batch's array would live as long as a response does.
        return Response(prediction.copy(), members, None if disagreement != disagreement else disagreement, timings, version.number)

    def _judge_member(self, place: int, index: int, request: Request, number: int) -> MemberResult:
        """Say what became of one member for one request: in this batch, or in an earlier one."""
        if number not in request.samples:
            return MemberResult(State.NO_INPUT)
        batch, member = self._batch, self._batch.members[number]
        partial, run = request.partials.get(number), batch.run_of.get(number)
        is_in_batch = partial is None and run is not None and index in run.first
        error = partial.error if partial else batch.excluded.get((index, number))
        if error is None and partial is None and not is_in_batch:
            if index not in self._unsure:
                return MemberResult(State.SKIPPED)
            error = MemberLate("the first member was not sure, and no time was left for this one", member=member.name)
        if error is None and is_in_batch and run is not None:
            error = run.errors.get(index)
            if error is None and number not in self._done and not self._present[place][number]:
                error = MemberLate("the member was not ready when the request had to be answered", member=member.name)
        if error is None and member.is_fused and not self._present[place][number]:
            or_what = ", or with a probability that is none" if member.spec.output.kind == "probabilities" else ""
            error = NotFinite(f"the member answered with NaN or an infinity{or_what}", member=member.name)
        if error is not None:
            seconds = partial.device_seconds if partial else self._seconds.get(number)
            return MemberResult(STATE_OF_ERROR[type(error)], device_seconds=seconds, error=error)
        weight = self._weights[place][number]
        if partial is not None:
            result = MemberResult(
                State.OK, weight, partial.device_seconds, None, None, partial.solo_seconds, partial.used_cuda_graph
            )
        else:
            result = self._ok(number, weight)
        return replace(
            result, prediction=self._own_prediction(index, request, number), attribution=self._attributions.get((place, number))
        )

    def _ok(self, number: int, weight: float) -> MemberResult:
        """Say of a member that it has answered in this batch."""
        run = self._batch.run_of[number]
        return MemberResult(State.OK, weight, self._seconds[number], None, None, run.solo_seconds, run.used_cuda_graph)

    def _own_prediction(self, index: int, request: Request, number: int) -> NDArray[np.float32] | None:
        """Return a member's own calibrated prediction, if the request wants it, float32 [...], or [samples, ...] of several."""
        member, wants = self._batch.members[number], request.request
        if not member.is_fused or not (wants.wants_member_predictions or wants.wants_explanation):
            return None
        partial = request.partials.get(number)
        output = self._batch.run_of[number].output_of(index) if partial is None else partial.output
        assert output is not None
        prediction = self._batch.version.host_fusion.member_prediction(number, torch.from_numpy(output)).numpy()
        values: NDArray[np.float32] = prediction if member.samples_per_request > 1 else prediction[0]
        return values


def find_attributions(
    batch: Batch, indices: Sequence[int], fused: FusionResult, places: Sequence[int]
) -> dict[tuple[int, int], Attribution]:  # fmt: skip
    """Fuse some requests once more without each member in turn, on the host: leave-one-out attribution.

    `places` are positions in `indices`, in whose order `fused` is. Returns the attribution by (position, member index), where both
    sides have an answer; a likeness has none without either of its members.
    """
    found: dict[tuple[int, int], Attribution] = {}
    task, present = batch.version.spec.task, fused.present[list(places)]
    if task == "similarity":
        return found
    for member in batch.members:
        if member.index in batch.version.host_fusion.needs:  # without it there is no answer
            continue
        others = present.clone()
        others[:, member.index] = False
        is_judged = (present[:, member.index] & others.any(-1)).tolist()
        if not any(is_judged):
            continue
        without = batch.fuse([indices[place] for place in places], without=member.index).prediction
        deltas = attribution_delta(task, fused.prediction[list(places)], without).tolist()
        for place, is_it, delta, prediction in zip(places, is_judged, deltas, without.numpy(), strict=True):
            if is_it:
                found[place, member.index] = Attribution(delta, prediction)
    return found

"""The writer of answers: rows and their members to the contract's messages.

Everything is written into the message where it belongs: one that is made apart is copied into the one around it, and with that
one again into the next.
"""

import time

import numpy as np
from numpy.typing import NDArray

from twinfer.v1 import ensemble_service_pb2 as pb

from ..engine import Description, MemberDescription
from ..types import InferRequest, MemberResult, Response
from .codec import write_duration, write_error
from .predictions import write_matches, write_prediction, write_tensor


class AnswerWriter:
    """Writes answers; what the rows of one flight have in common is written for the first of them, and copied for the others.

    Event loop only.
    """

    def __init__(self) -> None:
        """Begin with nothing written."""
        self._last: Response | None = None
        self._common = pb.InferResponse()

    def write(self, message: pb.InferResponse, answer: Response, request: InferRequest, description: Description) -> None:
        """Write an answer into its message, which is empty; the total time ends here."""
        # The same object only where rows of one flight ask for no more than what is the same for all of them.
        if self._last is None or answer.members is not self._last.members:
            self._common = _write_common(answer, request, description)
            self._last = answer
        message.CopyFrom(self._common)
        message.request_id = request.caller.request_id
        _write(message.prediction, answer.fused, request, description)
        if answer.disagreement is not None:
            message.disagreement = answer.disagreement
        own, timings = message.timings, answer.timings
        write_duration(own.decode, timings.decode_seconds)
        write_duration(own.queue, timings.queue_seconds)
        write_duration(own.buffer_wait, timings.buffer_wait_seconds)
        write_duration(own.total, time.monotonic() - request.arrived_at)


def _write_common(answer: Response, request: InferRequest, description: Description) -> pb.InferResponse:
    timings = answer.timings
    message = pb.InferResponse(
        ensemble=description.name,
        version=description.version,
        degraded=answer.is_degraded,
        fusion_version=answer.fusion_version,
        timings=pb.Timings(batch_size=timings.batch_size, execution=timings.execution, overlap_ratio=timings.overlap_ratio),
    )
    write_duration(message.timings.device, timings.device_seconds)
    for member, facts in zip(answer.members, description.members, strict=True):
        _write_member(message.members.add(), member, facts, request, description)
    return message


def _write_member(
    message: pb.MemberResult, member: MemberResult, facts: MemberDescription, request: InferRequest,
    description: Description,
) -> None:  # fmt: skip
    message.name = facts.name
    message.state = int(member.state)  # type: ignore[assignment]  # the numbers are the contract's own
    message.weight = member.weight
    message.cuda_graph = member.used_cuda_graph
    if member.device_seconds is not None:
        write_duration(message.device_time, member.device_seconds)
    if member.solo_seconds is not None:
        write_duration(message.solo_latency, member.solo_seconds)
    if member.output is not None:
        _write_own(message.prediction, member.output, facts, request, description)
    if member.error is not None:
        message.error.CopyFrom(write_error(member.error))
    if member.attribution is not None:
        message.attribution.delta = member.attribution.moved
        _write(message.attribution.without, member.attribution.without, request, description)


def _write_own(
    message: pb.Prediction, output: NDArray[np.float32], facts: MemberDescription, request: InferRequest, description: Description
) -> None:  # fmt: skip
    """Write what a member says by itself; where that is not in the form of the task, as it is."""
    is_apart = description.task == "similarity" or (description.task == "detection" and facts.output != "detections")
    if is_apart:
        write_tensor(message, output)
    else:
        _write(message, output, request, description)


def _write(message: pb.Prediction, values: NDArray[np.float32], request: InferRequest, description: Description) -> None:
    if description.task == "similarity" and description.compared in request.inputs:
        write_matches(message, values)
    else:
        write_prediction(message, description.task, values, description.labels, request.top_k)

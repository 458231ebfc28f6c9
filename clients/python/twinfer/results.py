"""What the service answers, as plain frozen values; `Response.message` is what came over the wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from google.protobuf.duration_pb2 import Duration

from twinfer.errors import TwinferError
from twinfer.predictions import Prediction
from twinfer.statuses import error_from_message, name_enum
from twinfer.v1 import ensemble_service_pb2 as pb


class MemberState(StrEnum):
    """What became of a member for a request, as `twinfer.v1.MemberState` names it."""

    UNSPECIFIED = "UNSPECIFIED"
    OK = "OK"
    FAILED = "FAILED"
    LATE = "LATE"
    SKIPPED = "SKIPPED"
    OFF = "OFF"
    NO_INPUT = "NO_INPUT"


@dataclass(frozen=True, slots=True)
class Attribution:
    """How far a member moved an answer, 0 to 1 (see `twinfer.v1.Attribution`), and what the others would have said without it."""

    delta: float
    without: Prediction

    @classmethod
    def from_message(cls, message: pb.Attribution) -> Self:
        """Return the attribution that a message describes."""
        return cls(delta=message.delta, without=Prediction.from_message(message.without))


@dataclass(frozen=True, slots=True)
class MemberResult:
    """One member's part in an answer."""

    name: str
    state: MemberState
    # Its share in the fusion, 0 to 1.
    weight: float
    # None if it did not run to its end.
    device_ms: float | None
    # Its solo latency at the batch's bucket, as measured at warm-up; None if it took no part.
    solo_ms: float | None
    # Its own prediction, if `member_predictions` or `explain` was asked for and it has one: the task's, or, where its part is
    # another one (an embedding to compare), a tensor.
    prediction: Prediction | None
    # Why it has no output, if it is FAILED, LATE or OFF. Not raised: the answer stands without it.
    error: TwinferError | None
    # How far it moved the answer, if `explain` was asked for and another member took part, too.
    attribution: Attribution | None = None

    @classmethod
    def from_message(cls, message: pb.MemberResult) -> Self:
        """Return the part that a message describes."""
        return cls(
            name=message.name,
            state=name_enum(MemberState, pb.MemberState, message.state),
            weight=message.weight,
            device_ms=_milliseconds(message.device_time) if message.HasField("device_time") else None,
            solo_ms=_milliseconds(message.solo_latency) if message.HasField("solo_latency") else None,
            prediction=Prediction.from_message(message.prediction) if message.HasField("prediction") else None,
            error=error_from_message(message.error) if message.HasField("error") else None,
            attribution=Attribution.from_message(message.attribution) if message.HasField("attribution") else None,
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went on the server; see `twinfer.v1.Timings`."""

    decode_ms: float
    queue_ms: float
    device_ms: float
    total_ms: float
    batch_size: int
    overlap_ratio: float | None
    execution: str
    buffer_wait_ms: float

    @classmethod
    def from_message(cls, message: pb.Timings) -> Self:
        """Return the timings that a message holds."""
        return cls(
            decode_ms=_milliseconds(message.decode),
            queue_ms=_milliseconds(message.queue),
            device_ms=_milliseconds(message.device),
            total_ms=_milliseconds(message.total),
            batch_size=message.batch_size,
            overlap_ratio=message.overlap_ratio if message.HasField("overlap_ratio") else None,
            execution=message.execution,
            buffer_wait_ms=_milliseconds(message.buffer_wait),
        )


@dataclass(frozen=True, slots=True)
class Response:
    """One fused answer."""

    prediction: Prediction
    # By name, in the ensemble's order.
    members: Mapping[str, MemberResult]
    # Whether a member that should have taken part did not.
    degraded: bool
    # How far the members disagree, 0 to 1; None where fewer than two took part.
    disagreement: float | None
    timings: Timings
    request_id: str
    ensemble: str
    version: int
    # The version of the fusion, with its weights and temperatures, that made the answer.
    fusion_version: int
    message: pb.InferResponse = field(repr=False, compare=False)

    @classmethod
    def from_message(cls, message: pb.InferResponse) -> Self:
        """Return the answer that a message holds."""
        return cls(
            prediction=Prediction.from_message(message.prediction),
            members={member.name: MemberResult.from_message(member) for member in message.members},
            degraded=message.degraded,
            disagreement=message.disagreement if message.HasField("disagreement") else None,
            timings=Timings.from_message(message.timings),
            request_id=message.request_id,
            ensemble=message.ensemble,
            version=message.version,
            fusion_version=message.fusion_version,
            message=message,
        )

    @property
    def label(self) -> str:
        """The most probable class's label. Raises LookupError if the answer is not a classification."""
        return self.prediction.label

    @property
    def probability(self) -> float:
        """The most probable class's probability. Raises LookupError if the answer is not a classification."""
        return self.prediction.probability

    @property
    def embedding(self) -> tuple[float, ...]:
        """The fused vector; empty if the answer is not an embedding."""
        return self.prediction.embedding


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request of many."""

    # The request's index among those that were sent: outcomes come in any order.
    index: int
    # Its own id, or its index as a text where it had none.
    request_id: str
    result: Response | TwinferError

    @classmethod
    def from_message(cls, index: int, request_id: str, message: pb.InferStreamResponse | pb.BatchInferResult) -> Self:
        """Return the outcome that a message brings for the request at this index."""
        failed = message.HasField("error")
        return cls(index, request_id, error_from_message(message.error) if failed else Response.from_message(message.response))

    @property
    def error(self) -> TwinferError | None:
        """Why the request failed; None if it was answered."""
        return self.result if isinstance(self.result, TwinferError) else None

    @property
    def response(self) -> Response:
        """The request's answer. Raises the request's error if it failed."""
        if isinstance(self.result, TwinferError):
            raise self.result
        return self.result


def _milliseconds(span: Duration) -> float:
    return span.seconds * 1e3 + span.nanos / 1e6

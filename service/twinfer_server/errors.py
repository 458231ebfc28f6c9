"""Everything that can go wrong, each with its gRPC code and its machine-readable reason.

TwinferError: InvalidRequest (MalformedMessage, UnknownInput, MissingInput, InvalidInput, InvalidOption, UnknownMember),
UnknownEnsemble, Unsupported, Overloaded, Unavailable (Loading, Draining, MemberOff), DeadlinePassed (MemberLate), Cancelled,
FusionConflict, InternalError (MemberFailed, NotFinite, NothingToFuse). InvalidEnsemble (UntrustedCode) never leaves the process:
loading an ensemble ends with it.
"""

import copy
from typing import ClassVar, Self

from grpc import StatusCode

from twinfer.v1 import error_pb2 as pb
from twinfer.v1.error_pb2 import Reason, Stage

MAX_TEXT_CHARS = 1000


def quote(value: object, max_chars: int = 60) -> str:
    """Quote what a caller sent, at most its first part: a status message that repeats it whole may not be receivable."""
    text = str(value)
    return repr(text if len(text) <= max_chars else text[:max_chars] + "...")


class TwinferError(Exception):
    """An error that knows how a call ends with it. Raise the narrowest subclass."""

    code: ClassVar[StatusCode]
    reason: ClassVar["Reason"]
    default_stage: ClassVar["Stage"] = pb.STAGE_ADMIT

    def __init__(self, text: str, *, member: str = "", stage: "Stage | None" = None) -> None:
        """Describe the error: `text` says field, found, allowed; `member` and `stage` say where."""
        super().__init__(text[:MAX_TEXT_CHARS])
        self.text = text[:MAX_TEXT_CHARS]
        self.member = member
        self.stage = self.default_stage if stage is None else stage

    def within(self, where: str) -> Self:
        """Return the same error with `where` it happened in front of its text; one error may be that of many requests."""
        other = copy.copy(self)
        other.text = (where + self.text)[:MAX_TEXT_CHARS]
        other.args = (other.text,)
        return other

    def detached(self) -> Self:
        """Return the error without its traceback and causes, whose frames would keep the request's bytes in memory."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class InvalidRequest(TwinferError):
    """The caller's fault; the same request would fail again."""

    code = StatusCode.INVALID_ARGUMENT


class MalformedMessage(InvalidRequest):
    """The bytes do not parse as the RPC's request."""

    reason = pb.REASON_MALFORMED_MESSAGE


class UnknownInput(InvalidRequest):
    """The request has an input that the ensemble does not declare."""

    reason = pb.REASON_UNKNOWN_INPUT


class MissingInput(InvalidRequest):
    """An input that the answer needs is missing."""

    reason = pb.REASON_MISSING_INPUT


class InvalidInput(InvalidRequest):
    """An input is there and cannot be used."""

    reason = pb.REASON_INVALID_INPUT
    default_stage = pb.STAGE_DECODE


class InvalidOption(InvalidRequest):
    """An option cannot be used."""

    reason = pb.REASON_INVALID_OPTION


class UnknownMember(InvalidRequest):
    """An option names a member that the ensemble does not have."""

    reason = pb.REASON_UNKNOWN_MEMBER


class UnknownEnsemble(TwinferError):
    """The request asks for an ensemble or a version that is not served."""

    code = StatusCode.NOT_FOUND
    reason = pb.REASON_UNKNOWN_ENSEMBLE


class Unsupported(TwinferError):
    """The request asks for a part of the Open Inference Protocol that this server does not have."""

    code = StatusCode.UNIMPLEMENTED
    reason = pb.REASON_UNSUPPORTED


class Overloaded(TwinferError):
    """As many calls, requests or bytes are in flight as may be; `retry_after_seconds` says when to come again."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = pb.REASON_OVERLOADED

    def __init__(self, text: str, *, retry_after_seconds: float = 0.0) -> None:
        """Describe the limit that was reached."""
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(TwinferError):
    """Not now; the same request may succeed later, or elsewhere."""

    code = StatusCode.UNAVAILABLE


class Loading(Unavailable):
    """The ensemble is loading or warming up."""

    reason = pb.REASON_LOADING


class Draining(Unavailable):
    """The server is shutting down."""

    reason = pb.REASON_DRAINING


class MemberOff(Unavailable):
    """A member that the answer needs is off: its circuit breaker is open, or an operator has disabled it."""

    reason = pb.REASON_MEMBER_OFF
    default_stage = pb.STAGE_MEMBER


class DeadlinePassed(TwinferError):
    """The request's deadline passed, or cannot be met."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = pb.REASON_DEADLINE
    default_stage = pb.STAGE_QUEUE


class MemberLate(DeadlinePassed):
    """A member that the answer needs was not ready when the request had to be answered."""

    reason = pb.REASON_MEMBER_LATE
    default_stage = pb.STAGE_MEMBER


class Cancelled(TwinferError):
    """The caller went away."""

    code = StatusCode.CANCELLED
    reason = pb.REASON_CANCELLED
    default_stage = pb.STAGE_QUEUE


class FusionConflict(TwinferError):
    """Another version of the fusion is in use than the operator expected, or the one asked for is not kept."""

    code = StatusCode.FAILED_PRECONDITION
    reason = pb.REASON_FUSION_VERSION


class InternalError(TwinferError):
    """Not the caller's fault."""

    code = StatusCode.INTERNAL
    reason = pb.REASON_INTERNAL
    default_stage = pb.STAGE_LAUNCH


class MemberFailed(InternalError):
    """A member raised an error while computing the request."""

    reason = pb.REASON_MEMBER_FAILED
    default_stage = pb.STAGE_MEMBER


class NotFinite(InternalError):
    """A member answered the request with NaN or an infinity."""

    reason = pb.REASON_NOT_FINITE
    default_stage = pb.STAGE_MEMBER


class NothingToFuse(InternalError):
    """No member has an output for the request."""

    reason = pb.REASON_NOTHING_TO_FUSE
    default_stage = pb.STAGE_FUSION


class InvalidEnsemble(Exception):
    """An ensemble folder cannot be served: says the key's path, what was found and what would be right."""


class UntrustedCode(InvalidEnsemble):
    """A file of the folder is a program, and the operator has not said that it may run."""

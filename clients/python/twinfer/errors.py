"""The exceptions that a call can end with; a class's own line gives its gRPC code, its reason and the stage it mostly comes from.

The server raises the same classes: what it knows of an error travels as `twinfer.v1.Error`.

The reason of a failure picks the class. A failure without one (a refused connection, a proxy in between) gets the class of its
code, and a code that no class has is a plain TwinferError. A wrong Python value is a TypeError or a ValueError, an unreadable file
an OSError: those are the program's, not the call's.
"""

from enum import StrEnum
from typing import ClassVar

from grpc import StatusCode


class Reason(StrEnum):
    """Why a call, a request or a member failed, as `twinfer.v1.Reason` names it; fit to branch on."""

    UNSPECIFIED = "UNSPECIFIED"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    UNKNOWN_ENSEMBLE = "UNKNOWN_ENSEMBLE"
    UNKNOWN_INPUT = "UNKNOWN_INPUT"
    MISSING_INPUT = "MISSING_INPUT"
    INVALID_INPUT = "INVALID_INPUT"
    INVALID_OPTION = "INVALID_OPTION"
    UNKNOWN_MEMBER = "UNKNOWN_MEMBER"
    OVERLOADED = "OVERLOADED"
    LOADING = "LOADING"
    DRAINING = "DRAINING"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    MEMBER_FAILED = "MEMBER_FAILED"
    NOT_FINITE = "NOT_FINITE"
    MEMBER_LATE = "MEMBER_LATE"
    MEMBER_OFF = "MEMBER_OFF"
    NOTHING_TO_FUSE = "NOTHING_TO_FUSE"
    INTERNAL = "INTERNAL"
    FUSION_VERSION = "FUSION_VERSION"
    UNSUPPORTED = "UNSUPPORTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"


class Stage(StrEnum):
    """Where on its way a request failed, as `twinfer.v1.Stage` names it."""

    UNSPECIFIED = "UNSPECIFIED"
    ADMIT = "ADMIT"
    DECODE = "DECODE"
    QUEUE = "QUEUE"
    LAUNCH = "LAUNCH"
    MEMBER = "MEMBER"
    FUSION = "FUSION"
    ENCODE = "ENCODE"


class TwinferError(Exception):
    """A failed call, or one failed request of many."""

    # What a class stands for; an error has the code and the reason that really came.
    default_code: ClassVar[StatusCode] = StatusCode.UNKNOWN
    default_reason: ClassVar[Reason] = Reason.UNSPECIFIED
    default_stage: ClassVar[Stage] = Stage.ADMIT

    def __init_subclass__(
        cls, code: StatusCode | None = None, reason: Reason = Reason.UNSPECIFIED, stage: Stage | None = None
    ) -> None:
        """Set what a class stands for: its reason, and by default its parent's code and stage."""
        super().__init_subclass__()
        cls.default_code = code or cls.default_code
        cls.default_reason = reason
        cls.default_stage = stage or cls.default_stage

    def __init__(
        self,
        text: str,
        *,
        code: StatusCode | None = None,
        reason: Reason | None = None,
        member: str = "",
        stage: Stage | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        """Describe the failure; `retry_after_seconds` is the server's hint, where it gave one."""
        super().__init__(text)
        self.text = text
        self.code = self.default_code if code is None else code
        self.reason = self.default_reason if reason is None else reason
        self.member = member
        self.stage = self.default_stage if stage is None else stage
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(TwinferError, code=StatusCode.INVALID_ARGUMENT):
    """The caller's fault; the same request would fail again."""


class MalformedMessage(InvalidRequest, reason=Reason.MALFORMED_MESSAGE):
    """The bytes did not parse as the RPC's request."""


class UnknownInput(InvalidRequest, reason=Reason.UNKNOWN_INPUT):
    """The request has an input that the ensemble does not declare."""


class MissingInput(InvalidRequest, reason=Reason.MISSING_INPUT):
    """An input that the answer needs is missing."""


class InvalidInput(InvalidRequest, reason=Reason.INVALID_INPUT, stage=Stage.DECODE):
    """An input is there and cannot be used."""


class InvalidOption(InvalidRequest, reason=Reason.INVALID_OPTION):
    """An option cannot be used."""


class UnknownMember(InvalidRequest, reason=Reason.UNKNOWN_MEMBER):
    """An option names a member that the ensemble does not have."""


class MessageTooLarge(InvalidRequest):
    """The request is larger than this client may send; raised by the client, before anything is sent."""


class UnknownEnsemble(TwinferError, code=StatusCode.NOT_FOUND, reason=Reason.UNKNOWN_ENSEMBLE):
    """The request asks for an ensemble or a version that is not served."""


class Unsupported(TwinferError, code=StatusCode.UNIMPLEMENTED, reason=Reason.UNSUPPORTED):
    """The server does not have what the call asks for; it may be older than this client."""


class Overloaded(TwinferError, code=StatusCode.RESOURCE_EXHAUSTED, reason=Reason.OVERLOADED):
    """The server has as much in flight as it may; the client's own retries were used up."""


class Unauthenticated(TwinferError, code=StatusCode.UNAUTHENTICATED, reason=Reason.UNAUTHENTICATED):
    """The server does not know the caller: give the client the `token` that the server's operator has made, or its certificate."""


class PermissionDenied(TwinferError, code=StatusCode.PERMISSION_DENIED, reason=Reason.PERMISSION_DENIED):
    """The server knows the caller, whose role does not allow the call: ask its operator for another role."""


class Unavailable(TwinferError, code=StatusCode.UNAVAILABLE):
    """Not now: no server could be reached, or it is not ready."""


class HandshakeFailed(Unavailable):
    """No connection by TLS came about, and none will: the text says what is wrong, and on which side."""


class Loading(Unavailable, reason=Reason.LOADING):
    """The ensemble is loading or warming up."""


class Draining(Unavailable, reason=Reason.DRAINING):
    """The server is shutting down."""


class MemberOff(Unavailable, reason=Reason.MEMBER_OFF, stage=Stage.MEMBER):
    """A member that the answer needs is off: its circuit breaker is open, or an operator has disabled it."""


class DeadlinePassed(TwinferError, code=StatusCode.DEADLINE_EXCEEDED, reason=Reason.DEADLINE, stage=Stage.QUEUE):
    """The deadline passed, or could not be met."""


class MemberLate(DeadlinePassed, reason=Reason.MEMBER_LATE, stage=Stage.MEMBER):
    """A member that the answer needs was not ready when the request had to be answered."""


class Cancelled(TwinferError, code=StatusCode.CANCELLED, reason=Reason.CANCELLED, stage=Stage.QUEUE):
    """The call was cancelled."""


class FusionConflict(TwinferError, code=StatusCode.FAILED_PRECONDITION, reason=Reason.FUSION_VERSION):
    """Another version of the fusion is in use than the caller expected, or the one asked for is not kept."""


class InternalError(TwinferError, code=StatusCode.INTERNAL, reason=Reason.INTERNAL, stage=Stage.LAUNCH):
    """Not the caller's fault."""


class MemberFailed(InternalError, reason=Reason.MEMBER_FAILED, stage=Stage.MEMBER):
    """A member raised an error while computing the request."""


class NotFinite(InternalError, reason=Reason.NOT_FINITE, stage=Stage.MEMBER):
    """A member answered the request with NaN or an infinity."""


class NothingToFuse(InternalError, reason=Reason.NOTHING_TO_FUSE, stage=Stage.FUSION):
    """No member has an output for the request."""

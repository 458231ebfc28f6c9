"""Everything a call can fail with, mirroring what the server raises.

    TwinferError                 code               reason
    ├── InvalidRequest           INVALID_ARGUMENT
    │   ├── MalformedMessage                        MALFORMED_MESSAGE
    │   ├── UnknownInput                            UNKNOWN_INPUT
    │   ├── MissingInput                            MISSING_INPUT
    │   ├── InvalidInput                            INVALID_INPUT
    │   ├── InvalidOption                           INVALID_OPTION
    │   ├── UnknownMember                           UNKNOWN_MEMBER
    │   └── MessageTooLarge      (raised here, before anything is sent)
    ├── UnknownEnsemble          NOT_FOUND          UNKNOWN_ENSEMBLE
    ├── Unsupported              UNIMPLEMENTED      UNSUPPORTED
    ├── Overloaded               RESOURCE_EXHAUSTED OVERLOADED
    ├── Unavailable              UNAVAILABLE        (without a reason: nobody could be reached)
    │   ├── Loading                                 LOADING
    │   ├── Draining                                DRAINING
    │   └── MemberOff                               MEMBER_OFF
    ├── DeadlinePassed           DEADLINE_EXCEEDED  DEADLINE
    │   └── MemberLate                              MEMBER_LATE
    ├── Cancelled                CANCELLED          CANCELLED
    ├── FusionConflict           FAILED_PRECONDITION FUSION_VERSION
    └── InternalError            INTERNAL           INTERNAL
        ├── MemberFailed                            MEMBER_FAILED
        ├── NotFinite                               NOT_FINITE
        └── NothingToFuse                           NOTHING_TO_FUSE

The reason picks the class; where a failure has none (a refused connection, a proxy in between), the code does, and a
code that stands in no row is a plain TwinferError. A wrong Python value is a TypeError or a ValueError, an unreadable
file an OSError: those are the program's, not the call's.
"""

from enum import StrEnum
from typing import ClassVar

import grpc


class Reason(StrEnum):
    """Why a call, a row or a member failed, as `twinfer.v1.Reason` names it; fit to branch on."""

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
    """A failed call, or one failed row of a stream."""

    # What a class stands for; an error has the code and the reason that really came.
    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[Reason] = Reason.UNSPECIFIED

    def __init__(
        self,
        text: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: Reason | None = None,
        member: str = "",
        stage: Stage = Stage.UNSPECIFIED,
        retry_after_seconds: float | None = None,
    ) -> None:
        """Describe the failure; `retry_after_seconds` is the server's hint, where it gave one."""
        super().__init__(text)
        self.text = text
        self.code = self.default_code if code is None else code
        self.reason = self.default_reason if reason is None else reason
        self.member = member
        self.stage = stage
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(TwinferError):
    """The caller's fault; the same request would fail again."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class MalformedMessage(InvalidRequest):
    """The bytes did not parse as the RPC's request."""

    default_reason = Reason.MALFORMED_MESSAGE


class UnknownInput(InvalidRequest):
    """The request has an input that the ensemble does not declare."""

    default_reason = Reason.UNKNOWN_INPUT


class MissingInput(InvalidRequest):
    """An input that the answer needs is missing."""

    default_reason = Reason.MISSING_INPUT


class InvalidInput(InvalidRequest):
    """An input is there and cannot be used."""

    default_reason = Reason.INVALID_INPUT


class InvalidOption(InvalidRequest):
    """An option cannot be used."""

    default_reason = Reason.INVALID_OPTION


class UnknownMember(InvalidRequest):
    """An option names a member that the ensemble does not have."""

    default_reason = Reason.UNKNOWN_MEMBER


class MessageTooLarge(InvalidRequest):
    """The request is larger than this client may send; nothing was sent."""


class UnknownEnsemble(TwinferError):
    """The request asks for an ensemble or a version that is not served."""

    default_code = grpc.StatusCode.NOT_FOUND
    default_reason = Reason.UNKNOWN_ENSEMBLE


class Unsupported(TwinferError):
    """The server does not have what the call asks for; it may be older than this client."""

    default_code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = Reason.UNSUPPORTED


class Overloaded(TwinferError):
    """The server has as much in hand as it may; the client's own retries were used up."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = Reason.OVERLOADED


class Unavailable(TwinferError):
    """Not now: nobody could be reached, or the server is not ready."""

    default_code = grpc.StatusCode.UNAVAILABLE


class Loading(Unavailable):
    """The ensemble is loading or warming up."""

    default_reason = Reason.LOADING


class Draining(Unavailable):
    """The server is shutting down."""

    default_reason = Reason.DRAINING


class MemberOff(Unavailable):
    """A member that the answer needs is switched off."""

    default_reason = Reason.MEMBER_OFF


class DeadlinePassed(TwinferError):
    """The deadline passed, or could not be met."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = Reason.DEADLINE


class MemberLate(DeadlinePassed):
    """A member that the answer needs was not ready when the row had to be answered."""

    default_reason = Reason.MEMBER_LATE


class Cancelled(TwinferError):
    """The call was cancelled."""

    default_code = grpc.StatusCode.CANCELLED
    default_reason = Reason.CANCELLED


class FusionConflict(TwinferError):
    """Another version of the fusion is in use than the caller expected, or the one asked for is not kept."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = Reason.FUSION_VERSION


class InternalError(TwinferError):
    """Not the caller's fault."""

    default_code = grpc.StatusCode.INTERNAL
    default_reason = Reason.INTERNAL


class MemberFailed(InternalError):
    """A member raised an error while computing the row."""

    default_reason = Reason.MEMBER_FAILED


class NotFinite(InternalError):
    """A member answered the row with NaN or an infinity."""

    default_reason = Reason.NOT_FINITE


class NothingToFuse(InternalError):
    """No member has an output for the row."""

    default_reason = Reason.NOTHING_TO_FUSE

"""Everything that can go wrong, each with its gRPC code and its machine-readable reason.

    TwinferError                 code               reason
    ├── InvalidRequest           INVALID_ARGUMENT
    │   ├── MalformedMessage                        MALFORMED_MESSAGE
    │   ├── UnknownInput                            UNKNOWN_INPUT
    │   ├── MissingInput                            MISSING_INPUT
    │   ├── InvalidInput                            INVALID_INPUT
    │   ├── InvalidOption                           INVALID_OPTION
    │   └── UnknownMember                           UNKNOWN_MEMBER
    ├── UnknownEnsemble          NOT_FOUND          UNKNOWN_ENSEMBLE
    ├── Unsupported              UNIMPLEMENTED      UNSUPPORTED
    ├── Overloaded               RESOURCE_EXHAUSTED OVERLOADED
    ├── Unavailable              UNAVAILABLE
    │   ├── Loading                                 LOADING
    │   ├── Draining                                DRAINING
    │   └── MemberOff                               MEMBER_OFF
    ├── DeadlinePassed           DEADLINE_EXCEEDED  DEADLINE
    │   └── MemberLate                              MEMBER_LATE
    ├── Cancelled                CANCELLED          CANCELLED
    ├── FusionConflict           FAILED_PRECONDITION FUSION_VERSION
    ├── InternalError            INTERNAL           INTERNAL
    │   ├── MemberFailed                            MEMBER_FAILED
    │   ├── NotFinite                               NOT_FINITE
    │   └── NothingToFuse                           NOTHING_TO_FUSE
    └── InvalidEnsemble          (never leaves the process: loading an ensemble ends with it)
        └── UntrustedCode

Codes are the numbers of the canonical gRPC codes, so that nothing below the RPC layer imports gRPC.
"""

from enum import IntEnum
from typing import ClassVar, Self


class Code(IntEnum):
    """The canonical gRPC status codes that the service ends calls with."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Reason(IntEnum):
    """The reasons, with the numbers that `twinfer.v1.Reason` gives them."""

    MALFORMED_MESSAGE = 1
    UNKNOWN_ENSEMBLE = 2
    UNKNOWN_INPUT = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_OPTION = 6
    UNKNOWN_MEMBER = 7
    OVERLOADED = 8
    LOADING = 9
    DRAINING = 10
    DEADLINE = 11
    CANCELLED = 12
    MEMBER_FAILED = 13
    NOT_FINITE = 14
    MEMBER_LATE = 15
    MEMBER_OFF = 16
    NOTHING_TO_FUSE = 17
    INTERNAL = 18
    FUSION_VERSION = 19
    UNSUPPORTED = 20


class Stage(IntEnum):
    """Where on its way a request failed, with the numbers of `twinfer.v1.Stage`."""

    ADMIT = 1
    DECODE = 2
    QUEUE = 3
    LAUNCH = 4
    MEMBER = 5
    FUSION = 6
    ENCODE = 7


MAX_TEXT_CHARS = 1000


def quote(value: object, max_chars: int = 60) -> str:
    """Quote what a caller sent, at most its first part: a status message that repeats it whole may not be receivable."""
    text = str(value)
    return repr(text if len(text) <= max_chars else text[:max_chars] + "...")


class TwinferError(Exception):
    """An error that knows how a call ends with it. Raise the narrowest subclass."""

    code: ClassVar[Code]
    reason: ClassVar[Reason]
    default_stage: ClassVar[Stage]

    def __init__(self, text: str, *, member: str = "", stage: Stage | None = None) -> None:
        """Describe the error: `text` says field, found, allowed; `member` and `stage` say where."""
        super().__init__(text[:MAX_TEXT_CHARS])
        self.text = text[:MAX_TEXT_CHARS]
        self.member = member
        self.stage = self.default_stage if stage is None else stage

    def within(self, where: str) -> Self:
        """Give the same error with `where` it happened in front of its text; one error may be that of many rows."""
        twin = type(self).__new__(type(self), where + self.text)
        twin.__dict__.update(self.__dict__, text=(where + self.text)[:MAX_TEXT_CHARS])
        return twin

    def alone(self) -> Self:
        """Have the error let go of the frames that it came through, and give it.

        They hold the request, and that holds the error: only the garbage collector would find the two, and it counts objects, not
        the bytes of a message.
        """
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class InvalidRequest(TwinferError):
    """The caller's fault; the same request would fail again."""

    code = Code.INVALID_ARGUMENT
    default_stage = Stage.ADMIT


class MalformedMessage(InvalidRequest):
    """The bytes do not parse as the RPC's request."""

    reason = Reason.MALFORMED_MESSAGE


class UnknownInput(InvalidRequest):
    """The request has an input that the ensemble does not declare."""

    reason = Reason.UNKNOWN_INPUT


class MissingInput(InvalidRequest):
    """An input that the answer needs is missing."""

    reason = Reason.MISSING_INPUT


class InvalidInput(InvalidRequest):
    """An input is there and cannot be used."""

    reason = Reason.INVALID_INPUT
    default_stage = Stage.DECODE


class InvalidOption(InvalidRequest):
    """An option cannot be used."""

    reason = Reason.INVALID_OPTION


class UnknownMember(InvalidRequest):
    """An option names a member that the ensemble does not have."""

    reason = Reason.UNKNOWN_MEMBER


class UnknownEnsemble(TwinferError):
    """The request asks for an ensemble or a version that is not served."""

    code = Code.NOT_FOUND
    reason = Reason.UNKNOWN_ENSEMBLE
    default_stage = Stage.ADMIT


class Unsupported(TwinferError):
    """The request asks for what a protocol of others has and this server has not."""

    code = Code.UNIMPLEMENTED
    reason = Reason.UNSUPPORTED
    default_stage = Stage.ADMIT


class Overloaded(TwinferError):
    """As many calls, rows or bytes are in hand as may be; `retry_after_seconds` says when to come again."""

    code = Code.RESOURCE_EXHAUSTED
    reason = Reason.OVERLOADED
    default_stage = Stage.ADMIT

    def __init__(self, text: str, *, retry_after_seconds: float) -> None:
        """Describe the limit that was reached."""
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(TwinferError):
    """Not now; the same request may succeed later, or elsewhere."""

    code = Code.UNAVAILABLE
    default_stage = Stage.ADMIT


class Loading(Unavailable):
    """The ensemble is loading or warming up."""

    reason = Reason.LOADING


class Draining(Unavailable):
    """The server is shutting down."""

    reason = Reason.DRAINING


class MemberOff(Unavailable):
    """A member that the answer needs is switched off."""

    reason = Reason.MEMBER_OFF
    default_stage = Stage.MEMBER


class DeadlinePassed(TwinferError):
    """The row's deadline passed, or cannot be met."""

    code = Code.DEADLINE_EXCEEDED
    reason = Reason.DEADLINE
    default_stage = Stage.QUEUE


class MemberLate(DeadlinePassed):
    """A member that the answer needs was not ready when the row had to be answered."""

    reason = Reason.MEMBER_LATE
    default_stage = Stage.MEMBER


class Cancelled(TwinferError):
    """The caller went away."""

    code = Code.CANCELLED
    reason = Reason.CANCELLED
    default_stage = Stage.QUEUE


class FusionConflict(TwinferError):
    """Another version of the fusion is in use than the operator expected, or the one asked for is not kept."""

    code = Code.FAILED_PRECONDITION
    reason = Reason.FUSION_VERSION
    default_stage = Stage.ADMIT


class InternalError(TwinferError):
    """Not the caller's fault."""

    code = Code.INTERNAL
    reason = Reason.INTERNAL
    default_stage = Stage.LAUNCH


class MemberFailed(InternalError):
    """A member raised an error while computing the row."""

    reason = Reason.MEMBER_FAILED
    default_stage = Stage.MEMBER


class NotFinite(InternalError):
    """A member answered the row with NaN or an infinity."""

    reason = Reason.NOT_FINITE
    default_stage = Stage.MEMBER


class NothingToFuse(InternalError):
    """No member has an output for the row."""

    reason = Reason.NOTHING_TO_FUSE
    default_stage = Stage.FUSION


class InvalidEnsemble(Exception):
    """An ensemble folder cannot be served: says the key's path, what was found and what would be right."""


class UntrustedCode(InvalidEnsemble):
    """A file of the folder is a program, and the operator has not said that it may run."""

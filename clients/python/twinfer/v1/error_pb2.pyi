from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_ADMIT: _ClassVar[Stage]
    STAGE_DECODE: _ClassVar[Stage]
    STAGE_QUEUE: _ClassVar[Stage]
    STAGE_LAUNCH: _ClassVar[Stage]
    STAGE_MEMBER: _ClassVar[Stage]
    STAGE_FUSION: _ClassVar[Stage]
    STAGE_ENCODE: _ClassVar[Stage]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_MALFORMED_MESSAGE: _ClassVar[Reason]
    REASON_UNKNOWN_ENSEMBLE: _ClassVar[Reason]
    REASON_UNKNOWN_INPUT: _ClassVar[Reason]
    REASON_MISSING_INPUT: _ClassVar[Reason]
    REASON_INVALID_INPUT: _ClassVar[Reason]
    REASON_INVALID_OPTION: _ClassVar[Reason]
    REASON_UNKNOWN_MEMBER: _ClassVar[Reason]
    REASON_OVERLOADED: _ClassVar[Reason]
    REASON_LOADING: _ClassVar[Reason]
    REASON_DRAINING: _ClassVar[Reason]
    REASON_DEADLINE: _ClassVar[Reason]
    REASON_CANCELLED: _ClassVar[Reason]
    REASON_MEMBER_FAILED: _ClassVar[Reason]
    REASON_NOT_FINITE: _ClassVar[Reason]
    REASON_MEMBER_LATE: _ClassVar[Reason]
    REASON_MEMBER_OFF: _ClassVar[Reason]
    REASON_NOTHING_TO_FUSE: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]
    REASON_FUSION_VERSION: _ClassVar[Reason]
    REASON_UNSUPPORTED: _ClassVar[Reason]
    REASON_UNAUTHENTICATED: _ClassVar[Reason]
    REASON_PERMISSION_DENIED: _ClassVar[Reason]
STAGE_UNSPECIFIED: Stage
STAGE_ADMIT: Stage
STAGE_DECODE: Stage
STAGE_QUEUE: Stage
STAGE_LAUNCH: Stage
STAGE_MEMBER: Stage
STAGE_FUSION: Stage
STAGE_ENCODE: Stage
REASON_UNSPECIFIED: Reason
REASON_MALFORMED_MESSAGE: Reason
REASON_UNKNOWN_ENSEMBLE: Reason
REASON_UNKNOWN_INPUT: Reason
REASON_MISSING_INPUT: Reason
REASON_INVALID_INPUT: Reason
REASON_INVALID_OPTION: Reason
REASON_UNKNOWN_MEMBER: Reason
REASON_OVERLOADED: Reason
REASON_LOADING: Reason
REASON_DRAINING: Reason
REASON_DEADLINE: Reason
REASON_CANCELLED: Reason
REASON_MEMBER_FAILED: Reason
REASON_NOT_FINITE: Reason
REASON_MEMBER_LATE: Reason
REASON_MEMBER_OFF: Reason
REASON_NOTHING_TO_FUSE: Reason
REASON_INTERNAL: Reason
REASON_FUSION_VERSION: Reason
REASON_UNSUPPORTED: Reason
REASON_UNAUTHENTICATED: Reason
REASON_PERMISSION_DENIED: Reason

class Error(_message.Message):
    __slots__ = ("code", "reason", "member", "stage", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: Reason
    member: str
    stage: Stage
    text: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., member: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., text: _Optional[str] = ...) -> None: ...

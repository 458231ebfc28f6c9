from google.protobuf import duration_pb2 as _duration_pb2
from twinfer.v1 import ensemble_pb2 as _ensemble_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CaptureTimelineRequest(_message.Message):
    __slots__ = ("duration",)
    DURATION_FIELD_NUMBER: _ClassVar[int]
    duration: _duration_pb2.Duration
    def __init__(self, duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CaptureTimelineResponse(_message.Message):
    __slots__ = ("trace_json",)
    TRACE_JSON_FIELD_NUMBER: _ClassVar[int]
    trace_json: bytes
    def __init__(self, trace_json: _Optional[bytes] = ...) -> None: ...

class UpdateFusionRequest(_message.Message):
    __slots__ = ("expected_version", "method", "weights", "temperatures", "fitted")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TemperaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    FITTED_FIELD_NUMBER: _ClassVar[int]
    expected_version: int
    method: str
    weights: _containers.ScalarMap[str, float]
    temperatures: _containers.ScalarMap[str, float]
    fitted: bool
    def __init__(self, expected_version: _Optional[int] = ..., method: _Optional[str] = ..., weights: _Optional[_Mapping[str, float]] = ..., temperatures: _Optional[_Mapping[str, float]] = ..., fitted: bool = ...) -> None: ...

class UpdateFusionResponse(_message.Message):
    __slots__ = ("fusion",)
    FUSION_FIELD_NUMBER: _ClassVar[int]
    fusion: _ensemble_pb2.Fusion
    def __init__(self, fusion: _Optional[_Union[_ensemble_pb2.Fusion, _Mapping]] = ...) -> None: ...

class RollbackFusionRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class RollbackFusionResponse(_message.Message):
    __slots__ = ("fusion",)
    FUSION_FIELD_NUMBER: _ClassVar[int]
    fusion: _ensemble_pb2.Fusion
    def __init__(self, fusion: _Optional[_Union[_ensemble_pb2.Fusion, _Mapping]] = ...) -> None: ...

class SetMemberRequest(_message.Message):
    __slots__ = ("member", "breaker_state")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    BREAKER_STATE_FIELD_NUMBER: _ClassVar[int]
    member: str
    breaker_state: _ensemble_pb2.BreakerState
    def __init__(self, member: _Optional[str] = ..., breaker_state: _Optional[_Union[_ensemble_pb2.BreakerState, str]] = ...) -> None: ...

class SetMemberResponse(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: _ensemble_pb2.Member
    def __init__(self, member: _Optional[_Union[_ensemble_pb2.Member, _Mapping]] = ...) -> None: ...

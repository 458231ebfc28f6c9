from google.protobuf import duration_pb2 as _duration_pb2
from twinfer.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_EMBEDDING: _ClassVar[Task]
TASK_UNSPECIFIED: Task
TASK_CLASSIFICATION: Task
TASK_EMBEDDING: Task

class Ensemble(_message.Message):
    __slots__ = ("name", "version", "task", "labels", "inputs", "members", "fusion", "policy", "limits", "plans")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FUSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    task: Task
    labels: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[InputSpec]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    fusion: Fusion
    policy: str
    limits: Limits
    plans: _containers.RepeatedCompositeFieldContainer[BucketPlan]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., task: _Optional[_Union[Task, str]] = ..., labels: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[InputSpec, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., fusion: _Optional[_Union[Fusion, _Mapping]] = ..., policy: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., plans: _Optional[_Iterable[_Union[BucketPlan, _Mapping]]] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("name", "kind", "dtype", "shape", "members", "optional", "max_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    dtype: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    optional: bool
    max_tokens: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., members: _Optional[_Iterable[str]] = ..., optional: bool = ..., max_tokens: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "loader", "precision", "device", "inputs", "output", "parameter_bytes", "not_captured", "capture_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOADER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOT_CAPTURED_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    loader: str
    precision: str
    device: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    output: str
    parameter_bytes: int
    not_captured: str
    capture_bytes: int
    def __init__(self, name: _Optional[str] = ..., loader: _Optional[str] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., output: _Optional[str] = ..., parameter_bytes: _Optional[int] = ..., not_captured: _Optional[str] = ..., capture_bytes: _Optional[int] = ...) -> None: ...

class Fusion(_message.Message):
    __slots__ = ("method", "weights")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    method: str
    weights: _containers.ScalarMap[str, float]
    def __init__(self, method: _Optional[str] = ..., weights: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_image_pixels", "max_text_bytes", "max_flight_rows", "max_waiting_rows", "default_timeout")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FLIGHT_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_image_pixels: int
    max_text_bytes: int
    max_flight_rows: int
    max_waiting_rows: int
    default_timeout: _duration_pb2.Duration
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_flight_rows: _Optional[int] = ..., max_waiting_rows: _Optional[int] = ..., default_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BucketPlan(_message.Message):
    __slots__ = ("rows", "tokens", "plan", "times", "alone_times", "overlap_ratio")
    class TimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _duration_pb2.Duration
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    class AloneTimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _duration_pb2.Duration
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ALONE_TIMES_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_RATIO_FIELD_NUMBER: _ClassVar[int]
    rows: int
    tokens: int
    plan: str
    times: _containers.MessageMap[str, _duration_pb2.Duration]
    alone_times: _containers.MessageMap[str, _duration_pb2.Duration]
    overlap_ratio: float
    def __init__(self, rows: _Optional[int] = ..., tokens: _Optional[int] = ..., plan: _Optional[str] = ..., times: _Optional[_Mapping[str, _duration_pb2.Duration]] = ..., alone_times: _Optional[_Mapping[str, _duration_pb2.Duration]] = ..., overlap_ratio: _Optional[float] = ...) -> None: ...

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
    TASK_MULTI_LABEL: _ClassVar[Task]
    TASK_SIMILARITY: _ClassVar[Task]
    TASK_DETECTION: _ClassVar[Task]
    TASK_TENSOR: _ClassVar[Task]

class MemberSwitch(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_SWITCH_UNSPECIFIED: _ClassVar[MemberSwitch]
    MEMBER_SWITCH_ON: _ClassVar[MemberSwitch]
    MEMBER_SWITCH_TRIPPED: _ClassVar[MemberSwitch]
    MEMBER_SWITCH_OFF: _ClassVar[MemberSwitch]
TASK_UNSPECIFIED: Task
TASK_CLASSIFICATION: Task
TASK_EMBEDDING: Task
TASK_MULTI_LABEL: Task
TASK_SIMILARITY: Task
TASK_DETECTION: Task
TASK_TENSOR: Task
MEMBER_SWITCH_UNSPECIFIED: MemberSwitch
MEMBER_SWITCH_ON: MemberSwitch
MEMBER_SWITCH_TRIPPED: MemberSwitch
MEMBER_SWITCH_OFF: MemberSwitch

class Ensemble(_message.Message):
    __slots__ = ("name", "version", "task", "labels", "inputs", "members", "fusion", "policy", "limits", "plans", "cascade")
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
    CASCADE_FIELD_NUMBER: _ClassVar[int]
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
    cascade: Cascade
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., task: _Optional[_Union[Task, str]] = ..., labels: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[InputSpec, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., fusion: _Optional[_Union[Fusion, _Mapping]] = ..., policy: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., plans: _Optional[_Iterable[_Union[BucketPlan, _Mapping]]] = ..., cascade: _Optional[_Union[Cascade, _Mapping]] = ...) -> None: ...

class Cascade(_message.Message):
    __slots__ = ("first", "gate")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    first: str
    gate: float
    def __init__(self, first: _Optional[str] = ..., gate: _Optional[float] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("name", "kind", "dtype", "shape", "members", "optional", "max_tokens", "max_samples", "pair")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    dtype: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    optional: bool
    max_tokens: int
    max_samples: int
    pair: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., members: _Optional[_Iterable[str]] = ..., optional: bool = ..., max_tokens: _Optional[int] = ..., max_samples: _Optional[int] = ..., pair: bool = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "loader", "precision", "device", "inputs", "output", "parameter_bytes", "not_captured", "capture_bytes", "switch", "switch_reason", "fed_by", "acceleration", "speed_up", "largest_error", "staging_bytes", "activation_bytes", "shared_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOADER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOT_CAPTURED_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    SWITCH_REASON_FIELD_NUMBER: _ClassVar[int]
    FED_BY_FIELD_NUMBER: _ClassVar[int]
    ACCELERATION_FIELD_NUMBER: _ClassVar[int]
    SPEED_UP_FIELD_NUMBER: _ClassVar[int]
    LARGEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    STAGING_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    loader: str
    precision: str
    device: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    output: str
    parameter_bytes: int
    not_captured: str
    capture_bytes: int
    switch: MemberSwitch
    switch_reason: str
    fed_by: _containers.RepeatedScalarFieldContainer[str]
    acceleration: str
    speed_up: float
    largest_error: float
    staging_bytes: int
    activation_bytes: int
    shared_bytes: int
    def __init__(self, name: _Optional[str] = ..., loader: _Optional[str] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., output: _Optional[str] = ..., parameter_bytes: _Optional[int] = ..., not_captured: _Optional[str] = ..., capture_bytes: _Optional[int] = ..., switch: _Optional[_Union[MemberSwitch, str]] = ..., switch_reason: _Optional[str] = ..., fed_by: _Optional[_Iterable[str]] = ..., acceleration: _Optional[str] = ..., speed_up: _Optional[float] = ..., largest_error: _Optional[float] = ..., staging_bytes: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ...) -> None: ...

class Fusion(_message.Message):
    __slots__ = ("method", "weights", "version", "temperatures", "fitted")
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
    METHOD_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    FITTED_FIELD_NUMBER: _ClassVar[int]
    method: str
    weights: _containers.ScalarMap[str, float]
    version: int
    temperatures: _containers.ScalarMap[str, float]
    fitted: bool
    def __init__(self, method: _Optional[str] = ..., weights: _Optional[_Mapping[str, float]] = ..., version: _Optional[int] = ..., temperatures: _Optional[_Mapping[str, float]] = ..., fitted: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_image_pixels", "max_text_bytes", "max_flight_rows", "max_waiting_rows", "default_timeout", "max_batch_rows")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FLIGHT_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_image_pixels: int
    max_text_bytes: int
    max_flight_rows: int
    max_waiting_rows: int
    default_timeout: _duration_pb2.Duration
    max_batch_rows: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_flight_rows: _Optional[int] = ..., max_waiting_rows: _Optional[int] = ..., default_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_batch_rows: _Optional[int] = ...) -> None: ...

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

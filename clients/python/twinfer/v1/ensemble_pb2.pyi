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

class BreakerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BREAKER_STATE_UNSPECIFIED: _ClassVar[BreakerState]
    BREAKER_STATE_CLOSED: _ClassVar[BreakerState]
    BREAKER_STATE_OPEN: _ClassVar[BreakerState]
    BREAKER_STATE_DISABLED: _ClassVar[BreakerState]
TASK_UNSPECIFIED: Task
TASK_CLASSIFICATION: Task
TASK_EMBEDDING: Task
TASK_MULTI_LABEL: Task
TASK_SIMILARITY: Task
TASK_DETECTION: Task
TASK_TENSOR: Task
BREAKER_STATE_UNSPECIFIED: BreakerState
BREAKER_STATE_CLOSED: BreakerState
BREAKER_STATE_OPEN: BreakerState
BREAKER_STATE_DISABLED: BreakerState

class Ensemble(_message.Message):
    __slots__ = ("name", "version", "task", "labels", "inputs", "members", "fusion", "policy", "limits", "execution", "cascade", "output_shape", "compared_input")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FUSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    CASCADE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_INPUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    task: Task
    labels: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[InputSpec]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    fusion: Fusion
    policy: str
    limits: Limits
    execution: str
    cascade: Cascade
    output_shape: _containers.RepeatedScalarFieldContainer[int]
    compared_input: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., task: _Optional[_Union[Task, str]] = ..., labels: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[InputSpec, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., fusion: _Optional[_Union[Fusion, _Mapping]] = ..., policy: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., execution: _Optional[str] = ..., cascade: _Optional[_Union[Cascade, _Mapping]] = ..., output_shape: _Optional[_Iterable[int]] = ..., compared_input: _Optional[str] = ...) -> None: ...

class Cascade(_message.Message):
    __slots__ = ("first", "gate")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    first: str
    gate: float
    def __init__(self, first: _Optional[str] = ..., gate: _Optional[float] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("name", "kind", "dtype", "shape", "members", "optional", "max_tokens", "max_samples", "pair", "always_required", "native_shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    ALWAYS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    NATIVE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    dtype: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    optional: bool
    max_tokens: int
    max_samples: int
    pair: bool
    always_required: bool
    native_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., members: _Optional[_Iterable[str]] = ..., optional: bool = ..., max_tokens: _Optional[int] = ..., max_samples: _Optional[int] = ..., pair: bool = ..., always_required: bool = ..., native_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "loader", "precision", "device", "inputs", "output", "parameter_bytes", "no_cuda_graph_reason", "cuda_graph_bytes", "breaker_state", "breaker_reason", "upstream", "acceleration", "largest_error", "staging_bytes", "activation_bytes", "shared_bytes", "solo_latencies", "output_shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOADER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    NO_CUDA_GRAPH_REASON_FIELD_NUMBER: _ClassVar[int]
    CUDA_GRAPH_BYTES_FIELD_NUMBER: _ClassVar[int]
    BREAKER_STATE_FIELD_NUMBER: _ClassVar[int]
    BREAKER_REASON_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    ACCELERATION_FIELD_NUMBER: _ClassVar[int]
    LARGEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    STAGING_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOLO_LATENCIES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    loader: str
    precision: str
    device: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    output: str
    parameter_bytes: int
    no_cuda_graph_reason: str
    cuda_graph_bytes: int
    breaker_state: BreakerState
    breaker_reason: str
    upstream: _containers.RepeatedScalarFieldContainer[str]
    acceleration: str
    largest_error: float
    staging_bytes: int
    activation_bytes: int
    shared_bytes: int
    solo_latencies: _containers.RepeatedCompositeFieldContainer[SoloLatency]
    output_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., loader: _Optional[str] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., output: _Optional[str] = ..., parameter_bytes: _Optional[int] = ..., no_cuda_graph_reason: _Optional[str] = ..., cuda_graph_bytes: _Optional[int] = ..., breaker_state: _Optional[_Union[BreakerState, str]] = ..., breaker_reason: _Optional[str] = ..., upstream: _Optional[_Iterable[str]] = ..., acceleration: _Optional[str] = ..., largest_error: _Optional[float] = ..., staging_bytes: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., solo_latencies: _Optional[_Iterable[_Union[SoloLatency, _Mapping]]] = ..., output_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class SoloLatency(_message.Message):
    __slots__ = ("samples", "tokens", "latency")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    samples: int
    tokens: int
    latency: _duration_pb2.Duration
    def __init__(self, samples: _Optional[int] = ..., tokens: _Optional[int] = ..., latency: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("max_message_bytes", "max_image_pixels", "max_text_bytes", "max_batch_size", "max_in_flight_requests", "default_timeout", "max_batch_requests")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_image_pixels: int
    max_text_bytes: int
    max_batch_size: int
    max_in_flight_requests: int
    default_timeout: _duration_pb2.Duration
    max_batch_requests: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., max_in_flight_requests: _Optional[int] = ..., default_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_batch_requests: _Optional[int] = ...) -> None: ...

from google.protobuf import duration_pb2 as _duration_pb2
from twinfer.v1 import ensemble_pb2 as _ensemble_pb2
from twinfer.v1 import error_pb2 as _error_pb2
from twinfer.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Policy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_UNSPECIFIED: _ClassVar[Policy]
    POLICY_REQUIRE_ALL: _ClassVar[Policy]
    POLICY_BEST_EFFORT: _ClassVar[Policy]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    MEMBER_STATE_OK: _ClassVar[MemberState]
    MEMBER_STATE_FAILED: _ClassVar[MemberState]
    MEMBER_STATE_LATE: _ClassVar[MemberState]
    MEMBER_STATE_SKIPPED: _ClassVar[MemberState]
    MEMBER_STATE_OFF: _ClassVar[MemberState]
    MEMBER_STATE_NO_INPUT: _ClassVar[MemberState]
POLICY_UNSPECIFIED: Policy
POLICY_REQUIRE_ALL: Policy
POLICY_BEST_EFFORT: Policy
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
MEMBER_STATE_UNSPECIFIED: MemberState
MEMBER_STATE_OK: MemberState
MEMBER_STATE_FAILED: MemberState
MEMBER_STATE_LATE: MemberState
MEMBER_STATE_SKIPPED: MemberState
MEMBER_STATE_OFF: MemberState
MEMBER_STATE_NO_INPUT: MemberState

class InferRequest(_message.Message):
    __slots__ = ("ensemble", "version", "request_id", "inputs", "options")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Input
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Input, _Mapping]] = ...) -> None: ...
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ensemble: str
    version: int
    request_id: str
    inputs: _containers.MessageMap[str, Input]
    options: InferOptions
    def __init__(self, ensemble: _Optional[str] = ..., version: _Optional[int] = ..., request_id: _Optional[str] = ..., inputs: _Optional[_Mapping[str, Input]] = ..., options: _Optional[_Union[InferOptions, _Mapping]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("image", "text", "tensor", "texts")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    text: str
    tensor: _tensor_pb2.Tensor
    texts: TextList
    def __init__(self, image: _Optional[bytes] = ..., text: _Optional[str] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., texts: _Optional[_Union[TextList, _Mapping]] = ...) -> None: ...

class TextList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class InferOptions(_message.Message):
    __slots__ = ("policy", "timeout", "priority", "top_k", "member_predictions", "fusion_weights", "explain")
    class FusionWeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MEMBER_PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    FUSION_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    timeout: _duration_pb2.Duration
    priority: Priority
    top_k: int
    member_predictions: bool
    fusion_weights: _containers.ScalarMap[str, float]
    explain: bool
    def __init__(self, policy: _Optional[_Union[Policy, str]] = ..., timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ..., top_k: _Optional[int] = ..., member_predictions: bool = ..., fusion_weights: _Optional[_Mapping[str, float]] = ..., explain: bool = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("ensemble", "version", "request_id", "prediction", "members", "degraded", "disagreement", "timings", "fusion_version")
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DISAGREEMENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    FUSION_VERSION_FIELD_NUMBER: _ClassVar[int]
    ensemble: str
    version: int
    request_id: str
    prediction: Prediction
    members: _containers.RepeatedCompositeFieldContainer[MemberResult]
    degraded: bool
    disagreement: float
    timings: Timings
    fusion_version: int
    def __init__(self, ensemble: _Optional[str] = ..., version: _Optional[int] = ..., request_id: _Optional[str] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., members: _Optional[_Iterable[_Union[MemberResult, _Mapping]]] = ..., degraded: bool = ..., disagreement: _Optional[float] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., fusion_version: _Optional[int] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("classification", "embedding", "multi_label", "similarity", "detections", "tensor")
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    classification: Classification
    embedding: Embedding
    multi_label: MultiLabel
    similarity: Similarity
    detections: Detections
    tensor: _tensor_pb2.Tensor
    def __init__(self, classification: _Optional[_Union[Classification, _Mapping]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., multi_label: _Optional[_Union[MultiLabel, _Mapping]] = ..., similarity: _Optional[_Union[Similarity, _Mapping]] = ..., detections: _Optional[_Union[Detections, _Mapping]] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[ScoredClass]
    def __init__(self, classes: _Optional[_Iterable[_Union[ScoredClass, _Mapping]]] = ...) -> None: ...

class ScoredClass(_message.Message):
    __slots__ = ("index", "label", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class MultiLabel(_message.Message):
    __slots__ = ("labels",)
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[ScoredClass]
    def __init__(self, labels: _Optional[_Iterable[_Union[ScoredClass, _Mapping]]] = ...) -> None: ...

class Similarity(_message.Message):
    __slots__ = ("matches",)
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    matches: _containers.RepeatedCompositeFieldContainer[ScoredMatch]
    def __init__(self, matches: _Optional[_Iterable[_Union[ScoredMatch, _Mapping]]] = ...) -> None: ...

class ScoredMatch(_message.Message):
    __slots__ = ("index", "label", "cosine", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    cosine: float
    probability: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., cosine: _Optional[float] = ..., probability: _Optional[float] = ...) -> None: ...

class Detections(_message.Message):
    __slots__ = ("boxes",)
    BOXES_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedCompositeFieldContainer[DetectedBox]
    def __init__(self, boxes: _Optional[_Iterable[_Union[DetectedBox, _Mapping]]] = ...) -> None: ...

class DetectedBox(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max", "score", "index", "label")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    score: float
    index: int
    label: str
    def __init__(self, x_min: _Optional[float] = ..., y_min: _Optional[float] = ..., x_max: _Optional[float] = ..., y_max: _Optional[float] = ..., score: _Optional[float] = ..., index: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class MemberResult(_message.Message):
    __slots__ = ("name", "state", "weight", "device_time", "prediction", "error", "solo_latency", "cuda_graph", "attribution")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SOLO_LATENCY_FIELD_NUMBER: _ClassVar[int]
    CUDA_GRAPH_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: MemberState
    weight: float
    device_time: _duration_pb2.Duration
    prediction: Prediction
    error: _error_pb2.Error
    solo_latency: _duration_pb2.Duration
    cuda_graph: bool
    attribution: Attribution
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[MemberState, str]] = ..., weight: _Optional[float] = ..., device_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., solo_latency: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., cuda_graph: bool = ..., attribution: _Optional[_Union[Attribution, _Mapping]] = ...) -> None: ...

class Attribution(_message.Message):
    __slots__ = ("delta", "without")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FIELD_NUMBER: _ClassVar[int]
    delta: float
    without: Prediction
    def __init__(self, delta: _Optional[float] = ..., without: _Optional[_Union[Prediction, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode", "queue", "device", "total", "batch_size", "overlap_ratio", "execution", "buffer_wait")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_RATIO_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    BUFFER_WAIT_FIELD_NUMBER: _ClassVar[int]
    decode: _duration_pb2.Duration
    queue: _duration_pb2.Duration
    device: _duration_pb2.Duration
    total: _duration_pb2.Duration
    batch_size: int
    overlap_ratio: float
    execution: str
    buffer_wait: _duration_pb2.Duration
    def __init__(self, decode: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., queue: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., device: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., batch_size: _Optional[int] = ..., overlap_ratio: _Optional[float] = ..., execution: _Optional[str] = ..., buffer_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class InferStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: InferRequest
    def __init__(self, request: _Optional[_Union[InferRequest, _Mapping]] = ...) -> None: ...

class InferStreamResponse(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: InferResponse
    error: _error_pb2.Error
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[_Union[InferResponse, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class BatchInferRequest(_message.Message):
    __slots__ = ("ensemble", "version", "requests")
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ensemble: str
    version: int
    requests: _containers.RepeatedCompositeFieldContainer[InferRequest]
    def __init__(self, ensemble: _Optional[str] = ..., version: _Optional[int] = ..., requests: _Optional[_Iterable[_Union[InferRequest, _Mapping]]] = ...) -> None: ...

class BatchInferResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchInferResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchInferResult, _Mapping]]] = ...) -> None: ...

class BatchInferResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: InferResponse
    error: _error_pb2.Error
    def __init__(self, response: _Optional[_Union[InferResponse, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class GetEnsembleRequest(_message.Message):
    __slots__ = ("ensemble", "version")
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ensemble: str
    version: int
    def __init__(self, ensemble: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetEnsembleResponse(_message.Message):
    __slots__ = ("ensemble",)
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    ensemble: _ensemble_pb2.Ensemble
    def __init__(self, ensemble: _Optional[_Union[_ensemble_pb2.Ensemble, _Mapping]] = ...) -> None: ...

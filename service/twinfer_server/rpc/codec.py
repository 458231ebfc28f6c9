"""The codec: protobuf messages to plain requests, and errors and spans of time back to messages."""

from collections.abc import Collection, Mapping
from typing import TypedDict, TypeVar

from google.protobuf.duration_pb2 import Duration

from twinfer.v1 import ensemble_service_pb2, error_pb2, tensor_pb2

from ..errors import InvalidInput, InvalidOption, TwinferError, quote
from ..types import Array, InferRequest, Policy, Priority, RawInput, TraceSpan
from .tensors import DTYPES, check_shape, read_array

E = TypeVar("E", Policy, Priority)

MAX_REQUEST_ID_BYTES = 256
MAX_TEXT_CHARS = 1000
"""Of an error's text."""
# Looked up once: a descriptor makes a new mapping whenever it is asked.
_POLICIES = frozenset(ensemble_service_pb2.Policy.values())
_PRIORITIES = frozenset(ensemble_service_pb2.Priority.values())
_DATA_TYPES = frozenset(tensor_pb2.DataType.values())


class _Options(TypedDict, total=False):
    """What a request's options say, by the names that `Request` has for it."""

    policy: Policy | None
    timeout_seconds: float | None
    priority: Priority
    top_k: int
    wants_member_predictions: bool
    wants_explanation: bool
    fusion_weights: Mapping[str, float]


_NO_OPTIONS = _Options()


# --- requests ---------------------------------------------------------------------------------------------------------


def read_request(
    message: ensemble_service_pb2.InferRequest,
    arrived_at: float,
    deadline: float | None,
    caller: str = "",
    span: TraceSpan | None = None,
) -> InferRequest:  # fmt: skip
    """Turn a parsed request into a plain one; raises InvalidInput and InvalidOption for what no ensemble could accept."""
    request_id = message.request_id
    if len(request_id.encode()) > MAX_REQUEST_ID_BYTES:
        raise InvalidOption(f"request_id: found {len(request_id.encode())} bytes; allowed: {MAX_REQUEST_ID_BYTES}")
    # Most requests have none, or an empty message of them.
    options = _read_options(message.options) if message.options.ByteSize() else _NO_OPTIONS
    return InferRequest(
        inputs={name: _read_input(name, value) for name, value in message.inputs.items()},
        arrived_at=arrived_at,
        deadline=deadline,
        span=span,
        ensemble=message.ensemble,
        version=message.version,
        request_id=request_id,
        caller=caller,
        **options,
    )


def _read_options(options: ensemble_service_pb2.InferOptions) -> _Options:
    return _Options(
        policy=read_enum("options.policy", options.policy, Policy, _POLICIES),
        timeout_seconds=_read_timeout(options.timeout) if options.HasField("timeout") else None,
        priority=read_enum("options.priority", options.priority, Priority, _PRIORITIES) or Priority.NORMAL,
        top_k=options.top_k,
        wants_member_predictions=options.member_predictions,
        wants_explanation=options.explain,
        fusion_weights=dict(options.fusion_weights),
    )


def read_enum(field: str, number: int, kind: type[E], allowed: Collection[int]) -> E | None:
    """Return the enum's value, None where it is unset; raises InvalidOption for a number that the contract does not have."""
    if number not in allowed:
        raise InvalidOption(f"{field}: found {number}; allowed: {', '.join(map(str, sorted(allowed)))}")
    return kind(number) if number else None


def _read_timeout(timeout: Duration) -> float:
    seconds = timeout.seconds + timeout.nanos / 1e9
    if not seconds > 0:
        raise InvalidOption(f"options.timeout: found {seconds} s; allowed: more than 0")
    return seconds


def _read_input(name: str, message: ensemble_service_pb2.Input) -> RawInput:
    match message.WhichOneof("value"):
        case "image":
            return message.image
        case "text":
            return message.text
        case "texts":
            if not message.texts.values:
                raise InvalidInput(f"inputs[{quote(name)}].texts: found no text; allowed: at least one")
            return tuple(message.texts.values)
        case "tensor":
            return _read_tensor(name, message.tensor)
    raise InvalidInput(f"inputs[{quote(name)}]: no value is set; allowed: image, text, texts or tensor")


def _read_tensor(name: str, message: tensor_pb2.Tensor) -> Array:
    """Return a tensor as a read-only array; raises InvalidInput."""
    field = f"inputs[{quote(name)}].tensor"
    dtype = tensor_pb2.DataType.Name(message.dtype).removeprefix("DATA_TYPE_") if message.dtype in _DATA_TYPES else ""
    if dtype not in DTYPES:
        allowed = ", ".join(tensor_pb2.DataType.keys()[1:])
        raise InvalidInput(f"{field}.dtype: found {message.dtype or 'none'}; allowed: {allowed}")
    check_shape(field, message.shape, DTYPES[dtype].itemsize)
    return read_array(f"{field}.data", dtype, message.shape, message.data)


# --- responses ----------------------------------------------------------------------------------------------------------


def write_error(error: TwinferError) -> error_pb2.Error:
    """Turn an error into its message."""
    return error_pb2.Error(
        code=error.code.value[0],
        reason=f"REASON_{error.reason}",
        member=error.member,
        stage=f"STAGE_{error.stage}",
        text=error.text[:MAX_TEXT_CHARS],
    )


def write_duration(message: Duration, seconds: float) -> None:
    """Write seconds into a Duration, to the nanosecond."""
    nanos = round(seconds * 1e9)
    if not 0 <= nanos < 1_000_000_000:
        message.seconds, nanos = divmod(nanos, 1_000_000_000)
    message.nanos = nanos


def make_duration(seconds: float) -> Duration:
    """Turn seconds into a Duration of its own."""
    duration = Duration()
    write_duration(duration, seconds)
    return duration

"""The codec: protobuf messages to plain requests, and errors and spans of time back to messages."""

import math
from collections.abc import Collection, Mapping
from typing import TypedDict, TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration

from twinfer.v1 import ensemble_service_pb2, error_pb2, tensor_pb2

from ..errors import InvalidInput, InvalidOption, TwinferError, quote
from ..types import Array, InferRequest, Policy, Priority, RawInput

E = TypeVar("E", Policy, Priority)

MAX_REQUEST_ID_BYTES = 256
MAX_RANK = 16
MAX_TENSOR_BYTES = 2**31 - 1
"""More than any message holds."""

# BF16 has no NumPy type: it is read as the upper half of float32.
_DTYPES: Mapping[int, np.dtype[np.generic]] = {
    tensor_pb2.DATA_TYPE_BOOL: np.dtype("?"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DATA_TYPE_INT8: np.dtype("i1"),
    tensor_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_FP16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_BF16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_FP32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FP64: np.dtype("<f8"),
}
DTYPE_OF_NAME = {str(dtype): number for number, dtype in _DTYPES.items() if number != tensor_pb2.DATA_TYPE_BF16}


# Looked up once: a descriptor makes a new mapping whenever it is asked.
_POLICIES = frozenset(ensemble_service_pb2.Policy.values())
_PRIORITIES = frozenset(ensemble_service_pb2.Priority.values())


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


def read_request(message: ensemble_service_pb2.InferRequest, arrived_at: float, deadline: float | None) -> InferRequest:
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
        ensemble=message.ensemble,
        version=message.version,
        request_id=request_id,
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
    """Return a tensor's bytes as an array, read-only; raises InvalidInput."""
    data = message.data
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        names = ", ".join(tensor_pb2.DataType.Name(number) for number in _DTYPES)
        raise InvalidInput(f"{_tensor_field(name)}.dtype: found {message.dtype or 'none'}; allowed: {names}")
    shape = tuple(message.shape)
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"{_tensor_field(name)}.shape: found {len(shape)} dimensions; allowed: at most {MAX_RANK}")
    size = math.prod(shape) * dtype.itemsize
    if size != len(data) or min(shape, default=1) < 1:
        _check_size(name, message, len(data))
    if message.dtype == tensor_pb2.DATA_TYPE_BOOL and np.frombuffer(data, dtype=np.uint8).max(initial=0) > 1:
        raise InvalidInput(
            f"{_tensor_field(name)}.data: found a byte that is neither 0 nor 1; allowed: 0 or 1, as dtype DATA_TYPE_BOOL says"
        )
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if message.dtype == tensor_pb2.DATA_TYPE_BF16:
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    return array


def _check_size(name: str, message: tensor_pb2.Tensor, size_bytes: int) -> None:
    """Refuse a tensor whose shape is impossible, or says something else than its data does."""
    shape, itemsize = list(message.shape), _DTYPES[message.dtype].itemsize
    if any(size < 0 for size in shape):
        raise InvalidInput(f"{_tensor_field(name)}.shape: found {shape}; allowed: sizes of at least 0")
    if math.prod(size for size in shape if size) * itemsize > MAX_TENSOR_BYTES:  # even an empty one has strides that overflow
        raise InvalidInput(f"{_tensor_field(name)}.shape: found {shape}; allowed: at most {MAX_TENSOR_BYTES} bytes in all")
    if math.prod(shape) * itemsize != size_bytes:
        raise InvalidInput(
            f"{_tensor_field(name)}.data: found {size_bytes} bytes; allowed: {math.prod(shape) * itemsize}, "
            f"as dtype {tensor_pb2.DataType.Name(message.dtype)} and shape {shape} say"
        )


def _tensor_field(name: str) -> str:
    return f"inputs[{quote(name)}].tensor"


# --- responses ----------------------------------------------------------------------------------------------------------


def write_error(error: TwinferError) -> error_pb2.Error:
    """Turn an error into its message."""
    return error_pb2.Error(
        code=error.code.value[0], reason=error.reason, member=error.member, stage=error.stage, text=error.text
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

"""A received request: its large tensors stay in the bytes in which they came.

Protobuf copies a tensor's data when it parses a message, and again for whoever looks at it, and nothing else happens in the process
meanwhile. So the large ones are left out of what it parses: here only the frame around them is read, in the one form in which
libraries write it, and whatever is not in that form is protobuf's. Source: protobuf's "Encoding".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2

LARGE_BYTES = 256 * 1024
"""Up to this size protobuf's copies take less time than reading the frame does."""

MAX_FIELDS = 100
"""More than a message has that is worth it: nobody is to keep this busy with a message of millions."""


class WireType:
    """How a field's value is written, in the lower three bits of its tag."""

    VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


def _tag(number: int) -> int:
    return number << 3 | WireType.BYTES


INPUTS = _tag(pb.InferRequest.INPUTS_FIELD_NUMBER)
KEY, VALUE = _tag(1), _tag(2)
TENSOR = _tag(pb.Input.TENSOR_FIELD_NUMBER)
DATA = _tag(tensor_pb2.Tensor.DATA_FIELD_NUMBER)


class _Unusual(Exception):
    """The bytes are not in the form that is read here."""


class _Field(NamedTuple):
    """A field as it lies in a message: `whole` with its tag, `body` without tag and length."""

    tag: int
    whole: memoryview
    body: memoryview


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A parsed request; of the inputs that are in `large`, by name, the message has the tensor without its data."""

    message: pb.InferRequest
    large: Mapping[str, memoryview] = field(default_factory=dict)

    DESCRIPTOR = pb.InferRequest.DESCRIPTOR

    @classmethod
    def FromString(cls, data: bytes, large_bytes: int = LARGE_BYTES) -> "ReceivedRequest":
        """Parse a serialized InferRequest; raises DecodeError. Inputs of more than `large_bytes` are looked at by themselves."""
        if len(data) > large_bytes:
            try:
                return cls._leave_out(memoryview(data), large_bytes)
            except _Unusual:
                pass
        return cls(pb.InferRequest.FromString(data))

    @classmethod
    def _leave_out(cls, data: memoryview, large_bytes: int) -> "ReceivedRequest":
        small: list[memoryview] = []
        tensors: dict[str, list[_Field]] = {}
        for part in _walk(data):
            if part.tag == INPUTS and len(part.body) > large_bytes:
                name, tensor = _read_entry(part.body)
                if name in tensors:
                    raise _Unusual
                tensors[name] = tensor
            else:
                small.append(part.whole)
        message = pb.InferRequest.FromString(b"".join(small))
        large: dict[str, memoryview] = {}
        for name, tensor in tensors.items():
            if name in message.inputs:
                raise _Unusual
            message.inputs[name].tensor.SetInParent()
            message.inputs[name].tensor.MergeFromString(b"".join(part.whole for part in tensor if part.tag != DATA))
            [large[name]] = (part.body for part in tensor if part.tag == DATA)
        return cls(message, large)


def _read_entry(entry: memoryview) -> tuple[str, list[_Field]]:
    """Read an entry of `inputs`: its name and the fields of the tensor, one of which is its data."""
    match [*_walk(entry)]:
        case [_Field(tag=tag, body=name), _Field(tag=other, body=value)] if (tag, other) == (KEY, VALUE):
            parts = [*_walk(value)]
            if [part.tag for part in parts] == [TENSOR]:
                tensor = [*_walk(parts[0].body)]
                if sum(part.tag == DATA for part in tensor) == 1:
                    try:
                        return str(name, "utf-8"), tensor
                    except UnicodeDecodeError:
                        raise _Unusual from None
    raise _Unusual


def _walk(data: memoryview) -> Iterator[_Field]:
    """Give the fields of a message, one behind the other; raises _Unusual where one breaks off, for groups and for very many."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(data):
            return
        tag, body = _read_varint(data, at, 5)
        match tag & 7:
            case WireType.VARINT:
                end = _read_varint(data, body, 10)[1]
            case WireType.BYTES:
                size, body = _read_varint(data, body, 5)
                end = body + size
            case WireType.FIXED_64:
                end = body + 8
            case WireType.FIXED_32:
                end = body + 4
            case _:
                raise _Unusual
        if end > len(data):
            raise _Unusual
        yield _Field(tag, data[at:end], data[body:end])
        at = end
    raise _Unusual


def _read_varint(data: memoryview, at: int, max_bytes: int) -> tuple[int, int]:
    """Read a number of at most `max_bytes`; gives it, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + max_bytes]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise _Unusual

"""Rows, answers and errors as parcels: fixed fields by `struct`, texts behind them, numbers as arrays. Nothing is pickled.

Both ends are of one version and run on one machine, so nothing here is kept compatible, and monotonic times mean the same to both.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import errors
from ..errors import Overloaded, Stage, TwinferError
from ..rows import Answer, Array, Caller, Influence, MemberAnswer, Policy, Priority, Request, Row, Samples, State, Timings
from .cells import Bytes
from .parcel import Parcel, unpack

_ROW = struct.Struct("<ddddQIBBB?H")
_REPLY = struct.Struct("<ddd")
_MEMBER_SAMPLES = struct.Struct("<HH")
_ANSWER = struct.Struct("<dddIddIdH")
_MEMBER = struct.Struct("<BdddBd")
_ERROR = struct.Struct("<Bd")
_LENGTH = struct.Struct("<I")

_WANTS_MEMBERS, _WANTS_EXPLANATION = 1, 2
_HAS_OUTPUT, _HAS_INFLUENCE, _HAS_ERROR, _WAS_CAPTURED = 1, 2, 4, 8
_IS_ANSWER, _IS_ERROR = b"\0", b"\1"


def _kinds_below(kind: type[TwinferError]) -> Iterator[type[TwinferError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds_below(below)


ERROR_KINDS = {kind.__name__: kind for kind in _kinds_below(TwinferError) if kind.__module__ == errors.__name__}


def _write_text(text: str) -> bytes:
    # A text that is no Unicode may be in an error's quote of it; it is to come through, whatever it is.
    data = text.encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(data)) + data


class _Reader:
    """Reads a head from its beginning to its end."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._at = 0

    def fields(self, form: struct.Struct) -> tuple[Any, ...]:
        found: tuple[Any, ...] = form.unpack_from(self._head, self._at)
        self._at += form.size
        return found

    def text(self) -> str:
        (size,) = _LENGTH.unpack_from(self._head, self._at)
        begin = self._at + _LENGTH.size
        self._at = begin + size
        return self._head[begin : self._at].decode("utf-8", "surrogatepass")


# --- rows -----------------------------------------------------------------------------------------------------------------


def pack_row(row: Row) -> Parcel:
    """Write a row whose samples are ready; of its request only what is of use behind the decoding."""
    request = row.request
    wants = _WANTS_MEMBERS * request.wants_member_predictions + _WANTS_EXPLANATION * request.wants_explanation
    head = [
        _ROW.pack(
            request.arrived_at, row.reply_by, row.ready_at, row.decode_seconds, row.size_bytes, row.place, row.policy,
            request.priority, wants, row.weights is not None, len(row.samples),
        )
    ]  # fmt: skip
    caller = request.caller
    head += [_write_text(text) for text in (caller.request_id, caller.traceparent, caller.identity)]
    arrays: list[Array] = [] if row.weights is None else [row.weights]
    for index, samples in row.samples.items():
        head.append(_MEMBER_SAMPLES.pack(index, len(samples)))
        arrays += samples
    return Parcel(b"".join(head), arrays)


def unpack_row(room: Bytes) -> Row:
    """Read a row; its samples are views of `room`."""
    head, arrays = unpack(room)
    reader = _Reader(head)
    arrived_at, reply_by, ready_at, decode_seconds, size_bytes, place, policy, priority, wants, has_weights, members = (
        reader.fields(_ROW)
    )
    caller = Caller(reader.text(), reader.text(), reader.text())
    request = Request(
        inputs={},
        arrived_at=arrived_at,
        priority=Priority(priority),
        wants_member_predictions=bool(wants & _WANTS_MEMBERS),
        wants_explanation=bool(wants & _WANTS_EXPLANATION),
        caller=caller,
    )
    rest = iter(arrays)
    weights = next(rest) if has_weights else None
    samples: dict[int, Samples] = {}
    for _ in range(members):
        index, count = reader.fields(_MEMBER_SAMPLES)
        samples[index] = tuple(next(rest) for _ in range(count))
    row = Row(request, Policy(policy), weights, reply_by, samples=samples, place=place, size_bytes=size_bytes)  # type: ignore[arg-type]  # they are float64
    row.ready_at, row.decode_seconds = ready_at, decode_seconds
    return row


# --- what becomes of them -------------------------------------------------------------------------------------------------


def pack_outcome(outcome: Answer | TwinferError) -> Parcel:
    """Write an answer, or the error that a row ends with."""
    if isinstance(outcome, TwinferError):
        return Parcel(_IS_ERROR + pack_error(outcome), ())
    timings = outcome.timings
    head = [
        _IS_ANSWER,
        _ANSWER.pack(
            timings.decode_seconds, timings.queue_seconds, timings.device_seconds, timings.flight_rows,
            _write_optional(timings.overlap_ratio), timings.slot_wait_seconds, outcome.fusion_version,
            _write_optional(outcome.disagreement), len(outcome.members),
        ),
        _write_text(timings.plan),
    ]  # fmt: skip
    arrays: list[Array] = [outcome.fused]
    for member in outcome.members:
        influence, error = member.influence, member.error
        found = _HAS_OUTPUT * (member.output is not None) + _HAS_INFLUENCE * (influence is not None)
        found += _HAS_ERROR * (error is not None) + _WAS_CAPTURED * member.was_captured
        times = _write_optional(member.device_seconds), _write_optional(member.alone_seconds)
        head.append(_MEMBER.pack(member.state, member.weight, *times, found, influence.moved if influence else 0.0))
        if error is not None:
            head.append(pack_error(error))
        arrays += [member.output] if member.output is not None else []
        arrays += [influence.without] if influence is not None else []
    return Parcel(b"".join(head), arrays)


def unpack_outcome(room: Bytes) -> Answer | TwinferError:
    """Read an answer, or an error; its arrays are copies, so that the room can be given back at once."""
    head, views = unpack(room)
    reader = _Reader(head[1:])
    if head[:1] == _IS_ERROR:
        return _read_error(reader)
    decode, queue, device, rows, overlap, slot_wait, fusion_version, disagreement, count = reader.fields(_ANSWER)
    plan = reader.text()
    arrays = iter([view.copy() for view in views])
    fused = next(arrays)
    members = tuple(_read_member(reader, arrays) for _ in range(count))
    timings = Timings(decode, queue, device, rows, _read_optional(overlap), plan, slot_wait)
    return Answer(fused, members, _read_optional(disagreement), timings, fusion_version)  # type: ignore[arg-type]


def _read_member(reader: _Reader, arrays: Iterator[Array]) -> MemberAnswer:
    state, weight, device, alone, found, moved = reader.fields(_MEMBER)
    return MemberAnswer(
        state=State(state),
        weight=weight,
        device_seconds=_read_optional(device),
        alone_seconds=_read_optional(alone),
        was_captured=bool(found & _WAS_CAPTURED),
        error=_read_error(reader) if found & _HAS_ERROR else None,
        output=next(arrays) if found & _HAS_OUTPUT else None,  # type: ignore[arg-type]  # both are float32
        influence=Influence(moved, next(arrays)) if found & _HAS_INFLUENCE else None,  # type: ignore[arg-type]
    )


def pack_error(error: TwinferError) -> bytes:
    """Write an error."""
    retry_after = error.retry_after_seconds if isinstance(error, Overloaded) else 0.0
    texts: Sequence[str] = (type(error).__name__, error.member, error.text)
    return _ERROR.pack(error.stage, retry_after) + b"".join(map(_write_text, texts))


def unpack_error(data: bytes) -> TwinferError:
    """Read an error."""
    return _read_error(_Reader(data))


def _read_error(reader: _Reader) -> TwinferError:
    stage, retry_after = reader.fields(_ERROR)
    kind, member, text = ERROR_KINDS[reader.text()], reader.text(), reader.text()
    if issubclass(kind, Overloaded):
        return kind(text, retry_after_seconds=retry_after)
    return kind(text, member=member, stage=Stage(stage))


def pack_reply(answer: Answer) -> bytes:
    """Write what the books keep of an answer that has gone out: where its time went, and what became of each member."""
    timings = answer.timings
    times = _REPLY.pack(timings.decode_seconds, timings.queue_seconds, timings.device_seconds)
    return times + bytes([member.state for member in answer.members])


def unpack_reply(data: bytes) -> Answer:
    """Read what `pack_reply` has kept of an answer."""
    members = tuple(MemberAnswer(State(state)) for state in data[_REPLY.size :])
    decode, queue, device = _REPLY.unpack_from(data)
    timings = Timings(decode, queue, device, flight_rows=0)
    return Answer(np.empty(0, dtype=np.float32), members, None, timings)


def _write_optional(value: float | None) -> float:
    return math.nan if value is None else value


def _read_optional(value: float) -> float | None:
    return None if math.isnan(value) else value

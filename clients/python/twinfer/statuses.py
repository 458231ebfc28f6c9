"""Turns what came over the wire - a gRPC status, an `Error` message - into the exceptions of `errors.py`."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from twinfer.errors import HandshakeFailed, Reason, Stage, TwinferError
from twinfer.tls import explain_closing, explain_refusal
from twinfer.v1 import error_pb2

ERROR_KEY = "twinfer-error-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

Name = TypeVar("Name", bound=StrEnum)


def _below(kind: type[TwinferError]) -> Iterator[type[TwinferError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_BY_REASON: dict[Reason, type[TwinferError]] = {
    kind.default_reason: kind for kind in _below(TwinferError) if kind.default_reason is not Reason.UNSPECIFIED
}
# By code only the first branching of the tree: a bare code says no more than that.
_BY_CODE = {kind.default_code: kind for kind in TwinferError.__subclasses__()}


def name_enum(kind: type[Name], contract: Any, number: int) -> Name:
    """Return a value of one of the contract's enums by its name without prefix; UNSPECIFIED where only a newer server knows it."""
    prefix = contract.Name(0).removesuffix("UNSPECIFIED")
    try:
        return kind(contract.Name(number).removeprefix(prefix))
    except ValueError:
        return kind("UNSPECIFIED")


def error_from_message(message: error_pb2.Error, retry_after_seconds: float | None = None) -> TwinferError:
    """Return the exception that an `Error` stands for, be it a call's, a request's or a member's."""
    code = _CODES.get(message.code, grpc.StatusCode.UNKNOWN)
    reason = name_enum(Reason, error_pb2.Reason, message.reason)  # unspecified: the code picks the class
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, TwinferError)
    return kind(
        message.text or code.name,
        code=code,
        reason=reason,
        member=message.member,
        stage=name_enum(Stage, error_pb2.Stage, message.stage),
        retry_after_seconds=retry_after_seconds,
    )


def note_proxy(proxy: str) -> str:
    """Say that a call went through a proxy."""
    return f"it was asked for through the HTTP proxy of the variable {proxy}; a host that no_proxy lists is asked directly"


def error_from_call(failure: grpc.RpcError, proxy: str = "") -> TwinferError:
    """Return the exception for a failed call, with the server's `Error` where its trailing metadata carry one.

    proxy: that the call went through, if it did; named where the server itself has not answered.
    """
    sent: Any = failure.trailing_metadata() or ()  # sync and aio disagree on the type; both are pairs
    metadata: dict[str, str | bytes] = dict(iter(sent))
    pushback = metadata.get(PUSHBACK_KEY)  # negative means "do not retry", which is no hint
    retry_after_seconds = int(pushback) / 1000 if isinstance(pushback, str) and pushback.isdecimal() else None
    error = metadata.get(ERROR_KEY)
    if isinstance(error, bytes):
        try:
            return error_from_message(error_pb2.Error.FromString(error), retry_after_seconds)
        except DecodeError:
            pass  # not from our server, or damaged on the way: the status still says what it can
    details = failure.details() or ""
    if refusal := explain_refusal(details):
        return HandshakeFailed(refusal)
    text = explain_closing(details) or details
    if proxy and failure.code() is not grpc.StatusCode.CANCELLED:
        text = f"{text or failure.code().name}; {note_proxy(proxy)}"
    message = error_pb2.Error(code=failure.code().value[0], text=text)
    return error_from_message(message, retry_after_seconds)

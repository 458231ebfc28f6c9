"""The error boundary: where messages are parsed, and the one place where exceptions become statuses.

Handlers are registered for raw bytes, so that a message that does not parse is refused here like any other bad input; `grpc` itself
would end the call as INTERNAL before any handler saw it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from ..errors import InternalError, MalformedMessage, Overloaded, TwinferError, detach
from ..types import TraceSpan
from .codec import MAX_TEXT_CHARS, write_error

logger = logging.getLogger(__name__)

ERROR_KEY = "twinfer-error-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
SMALL_MESSAGE_BYTES = 256 * 1024
"""Up to this size a message is parsed on the event loop; parsing a larger one would hold up other calls."""
MAX_DETAIL_BYTES = 2048
"""Of a status message as it travels, percent-encoded; clients refuse trailers of more than 8 KiB in all."""

INTERNAL_TEXT = "internal error; the server's log has the details"

M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
UnaryMethod = Callable[[Any, int, "Context"], Awaitable[Message]]
"""A method that takes the parsed request, its size in bytes and the context."""
OnFailure = Callable[[TwinferError], None]


class Arrival(NamedTuple):
    """Whose message came, when, and by when it must be answered (None: its call has no deadline), by `time.monotonic()`.

    `span` stands for the call, or for the message of an RPC stream, where its trace is recorded.
    """

    at: float
    deadline: float | None
    caller: str = ""
    span: TraceSpan | None = None


class Status(NamedTuple):
    """How a call ends: the arguments of `ServicerContext.abort`."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


_arrived_at: ContextVar[float] = ContextVar("arrived_at")
current_span: ContextVar[TraceSpan | None] = ContextVar("current_span", default=None)
"""What stands for the current task's call or message, where its trace is recorded."""
_caller: ContextVar[str] = ContextVar("caller", default="")


def note_arrival() -> None:
    """Note that a message has come, before it is parsed; holds for the current task and for those that it begins."""
    _arrived_at.set(time.monotonic())


def name_caller(caller: str) -> None:
    """Note whose call it is; holds for the current task and for those that it begins."""
    _caller.set(caller)


def find_caller() -> str:
    """Return whose call it is; empty where names are not asked for, or none was proved."""
    return _caller.get()


def find_arrival(context: Context) -> Arrival:
    """Return whose message the current task's is, when it came, and its call's deadline."""
    remaining: float | None = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    return Arrival(_arrived_at.get(), deadline, find_caller(), current_span.get())


def note_span_error(error: TwinferError) -> None:
    """Say in the span of the current message, where there is one, that it has failed."""
    span = current_span.get()
    if span is not None:
        span.note_error(error.reason, error.text)


async def parse(kind: type[M], data: bytes, pool: Executor) -> M:
    """Parse a message; raises MalformedMessage."""
    try:
        if len(data) <= SMALL_MESSAGE_BYTES:
            return kind.FromString(data)
        return await asyncio.get_running_loop().run_in_executor(pool, kind.FromString, data)
    except DecodeError:
        raise MalformedMessage(f"{len(data)} bytes do not parse; allowed: a serialized {kind.DESCRIPTOR.full_name}") from None


def unary(
    kind: type[Message], method: UnaryMethod, pool: Executor, on_failure: OnFailure | None = None
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Return the handler of a unary RPC whose request is a `kind`; `on_failure` is told of calls that end with an error."""

    async def attempt(data: bytes, context: Context) -> bytes | Status:
        try:
            reply = await method(await parse(kind, data, pool), len(data), context)
            return reply.SerializeToString()
        except Exception as error:
            known = describe_error(error)
            if on_failure is not None:
                on_failure(known)
            return write_status(known)

    async def handle(data: bytes, context: Context) -> bytes:
        note_arrival()
        outcome = await attempt(data, context)
        if isinstance(outcome, bytes):
            return outcome
        # What `abort` raises holds this frame, and the context holds that: only the garbage collector finds the two, and `data`.
        del data
        return await abort(context, outcome)

    return grpc.unary_unary_rpc_method_handler(handle)


def describe_error(error: BaseException) -> TwinferError:
    """Return the error as callers may know it; an undeclared one is logged and kept from them."""
    if isinstance(error, TwinferError):
        return detach(error)
    logger.error("a request failed by a defect", exc_info=error)
    return InternalError(INTERNAL_TEXT)


async def fail(context: Context, error: BaseException) -> NoReturn:
    """End a call with the status that `error` stands for."""
    await abort(context, write_status(describe_error(error)))


async def abort(context: Context, status: Status) -> NoReturn:
    """End a call with a status."""
    await context.abort(*status)
    raise AssertionError("abort returns never")


def write_status(error: TwinferError) -> Status:
    """Write an error as the status of a call."""
    metadata: list[tuple[str, str | bytes]] = [(ERROR_KEY, write_error(error).SerializeToString())]
    if isinstance(error, Overloaded):
        after = error.retry_after_seconds
        metadata.append((PUSHBACK_KEY, "-1" if after is None else str(round(after * 1000))))  # -1: not again (gRFC A6)
    return Status(error.code, summarize(error), tuple(metadata))


def summarize(error: TwinferError) -> str:
    """Write the status message: member, stage and text, short enough to be received."""
    where = f"member {error.member}, stage {error.stage}: " if error.member else ""
    text = where + error.text[:MAX_TEXT_CHARS]
    # A character beyond ASCII travels as three bytes for each of its UTF-8 bytes.
    while sum(1 if character.isascii() else 3 * len(character.encode()) for character in text) > MAX_DETAIL_BYTES:
        text = text[: len(text) * 3 // 4]
    return text

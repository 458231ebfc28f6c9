"""The error boundary: the one place where bytes are parsed and where exceptions become statuses.

Handlers are registered for raw bytes, so that a message that does not parse is refused here like any other bad input; the server
itself would end the call as INTERNAL before any handler saw it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from ..errors import InternalError, MalformedMessage, Overloaded, TwinferError
from ..http2 import Call, Status
from .codec import write_error
from .received import ReceivedRequest

logger = logging.getLogger(__name__)

ERROR_KEY = "twinfer-error-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
SMALL_MESSAGE_BYTES = 256 * 1024
"""Up to this size a message is parsed on the event loop; parsing a larger one would hold up the others."""
MAX_DETAIL_BYTES = 2048
"""Of a status message as it travels, percent-encoded; clients refuse trailers of more than 8 KiB in all."""

INTERNAL_TEXT = "internal error; the server's log has the details"
STATUS = {code.value[0]: code for code in grpc.StatusCode}

M = TypeVar("M", bound=Message | ReceivedRequest)
Context = Call
"""What a method is told of its call, by the name that `grpc` has for it."""
UnaryMethod = Callable[[Any, int, Context], Awaitable[Message]]
"""A method that takes the parsed request, its size in bytes and the context."""
OnFailure = Callable[[TwinferError], None]


class Arrival(NamedTuple):
    """When a call came and by when it must be answered, by `time.monotonic()`, and the trace that it belongs to."""

    at: float
    deadline: float | None
    traceparent: str


def find_arrival(context: Context) -> Arrival:
    """Look at a call that has just come."""
    now = time.monotonic()
    remaining: float | None = context.time_remaining()
    traceparent = next((str(value) for key, value in context.invocation_metadata() or () if key == "traceparent"), "")
    return Arrival(now, None if remaining is None else now + remaining, traceparent)


async def parse(kind: type[M], data: bytes, pool: Executor) -> M:
    """Parse a message; raises MalformedMessage."""
    read: Callable[[bytes], M] = kind.FromString  # type: ignore[assignment]  # each gives its own kind
    try:
        if len(data) <= SMALL_MESSAGE_BYTES:
            return read(data)
        return await asyncio.get_running_loop().run_in_executor(pool, read, data)
    except DecodeError:
        raise MalformedMessage(f"{len(data)} bytes do not parse; allowed: a serialized {kind.DESCRIPTOR.full_name}") from None


def unary(
    kind: type[Message] | type[ReceivedRequest], method: UnaryMethod, pool: Executor, on_failure: OnFailure | None = None
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Make the handler of a unary RPC whose request is a `kind`; `on_failure` is told of calls that end with an error."""

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            reply = await method(await parse(kind, data, pool), len(data), context)
            return reply.SerializeToString()
        except Exception as error:
            known = describe_error(error)
            if on_failure is not None:
                on_failure(known)
            await fail(context, known)

    return grpc.unary_unary_rpc_method_handler(handle)


def describe_error(error: BaseException) -> TwinferError:
    """Give the error as callers may know it; what is nobody's declared error is logged and kept from them."""
    if isinstance(error, TwinferError):
        return error.alone()
    logger.error("a request failed by a defect", exc_info=error)
    return InternalError(INTERNAL_TEXT)


async def fail(context: Context, error: BaseException) -> NoReturn:
    """End a call with the status that `error` stands for."""
    await context.abort(*write_status(describe_error(error)))


def write_status(error: TwinferError) -> Status:
    """Write an error as the status of a call."""
    metadata: list[tuple[str, str | bytes]] = [(ERROR_KEY, write_error(error).SerializeToString())]
    if isinstance(error, Overloaded):
        metadata.append((PUSHBACK_KEY, str(round(error.retry_after_seconds * 1000))))
    return Status(STATUS[error.code], summarize(error), tuple(metadata))


def summarize(error: TwinferError) -> str:
    """Write the status message: member, stage and text, short enough to be received."""
    where = f"member {error.member}, stage {error.stage.name}: " if error.member else ""
    text = where + error.text
    # A character beyond ASCII travels as three bytes for each of its UTF-8 bytes.
    while sum(1 if character.isascii() else 3 * len(character.encode()) for character in text) > MAX_DETAIL_BYTES:
        text = text[: len(text) * 3 // 4]
    return text

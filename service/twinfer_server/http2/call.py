"""A call: what its caller sends and is sent, and what a handler sees of it."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from .frames import DEFAULT_WINDOW, Flag, Kind, frame_header, window_frame
from .heads import OK_BLOCK, REPLY_BLOCK, REPLY_FIELDS, Head, Metadata, write_block, write_trailers
from .messages import PREFIX, BadMessage, Data, Inbox, decompress

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

STREAM_WINDOW = 2**20
"""What a caller may send on a stream before any of it is read; one whose handler is not found or has ended may send the default."""


class CallEnded(Exception):
    """The call is over, and nothing more can be written or read."""


class Call(AsyncIterator[Any]):
    """One call. For its handler it is the context, with what is needed of `grpc.aio.ServicerContext`, and the requests of a stream.

    Event loop only.
    """

    __slots__ = (
        "_arrived", "_connection", "_credit", "_has_answered", "_head", "_inbox", "_is_half_closed", "_loop", "_number", "_task", "_timer",
        "_waiter", "handler", "is_over", "send_window",
    )  # fmt: skip

    def __init__(self, connection: "Connection", number: int, head: Head, handler: Handler, max_bytes: int) -> None:
        """Begin a call of a method that takes messages of at most `max_bytes`."""
        self._connection = connection
        self._number = number
        self._head = head
        self.handler = handler
        self._inbox = Inbox(max_bytes)
        self._credit = DEFAULT_WINDOW
        self.send_window = connection.peer_window
        self._loop = connection.loop
        self._is_half_closed = False
        self._has_answered = False
        self.is_over = False
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._arrived = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout_seconds is not None:
            self._timer = self._loop.call_later(head.timeout_seconds, self._expire)
        if handler.request_streaming:
            self._begin()

    # --- what handlers use --------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        """Give what the caller has said besides its messages; binary values under names that end in -bin."""
        return self._head.metadata

    def time_remaining(self) -> float | None:
        """Give the seconds until the caller's deadline; None if it has set none."""
        seconds = self._head.timeout_seconds
        return None if seconds is None else max(0.0, self._arrived + seconds - time.monotonic())

    async def read(self) -> Any:
        """Give the stream's next request, `grpc.aio.EOF` behind the last; raises CallEnded."""
        inbox = self._inbox
        while not inbox.complete:
            if self.is_over:
                raise CallEnded
            if self._is_half_closed:
                return grpc.aio.EOF
            self._waiter = self._loop.create_future()
            await self._waiter
        data, is_compressed = inbox.complete.popleft()
        self._top_up()
        return await self._open(data, is_compressed)

    async def __anext__(self) -> Any:
        """Give the stream's next request."""
        request = await self.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return request

    async def write(self, reply: Any) -> None:
        """Send a reply, once the caller has room for it; raises CallEnded."""
        if self.is_over:
            raise CallEnded
        message = self._serialize(reply)
        if not self._has_answered:
            self._has_answered = True
            self._connection.send_block(self._number, REPLY_BLOCK)
        data = PREFIX.pack(False, len(message)) + message
        if self._takes_at_once(len(data)):
            self._connection.send_window -= len(data)
            self.send_window -= len(data)
            self._connection.send(frame_header(Kind.DATA, 0, self._number, len(data)) + data)
        else:
            await self._send(memoryview(data))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """End the call with a status; always raises."""
        self.end(code, details, trailing_metadata)
        raise grpc.aio.AbortError(details)

    # --- what the connection tells ------------------------------------------------------------------------------------

    def receive(self, data: bytes, begin: int, end: int, frame_bytes: int) -> None:
        """Take a piece of what the caller sends, data[begin:end] of a frame of `frame_bytes`."""
        self._credit -= frame_bytes
        if self._is_half_closed or self._credit < 0:
            self.end(grpc.StatusCode.INTERNAL, "the caller has sent more than it may")
            return
        try:
            self._inbox.add(data, begin, end)
        except BadMessage as bad:
            self.end(bad.code, bad.text)
            return
        self._top_up()
        self._wake()

    def half_close(self) -> None:
        """Note that the caller sends nothing more; a method that takes one message begins now."""
        self._is_half_closed = True
        self._wake()
        found = len(self._inbox.complete)
        if not self._inbox.is_between_messages:
            self.end(grpc.StatusCode.INTERNAL, "message: found one that breaks off")
        elif not self.handler.request_streaming:
            if found == 1:
                self._begin()
            else:
                self.end(grpc.StatusCode.UNIMPLEMENTED, f"messages: found {found}; allowed: one")

    def cancel(self) -> None:
        """End the call without a word: the caller has gone."""
        self._is_half_closed = True
        self._leave()

    def end(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        """End the call with a status, whatever its handler is doing; nothing if it is over."""
        if self.is_over:
            return
        fields = write_trailers(code, details, metadata)
        block = write_block(fields if self._has_answered else REPLY_FIELDS[:2] + fields)
        self._connection.send_block(self._number, block, is_last=True)
        self._leave()

    # --- its life -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._serve())
        if self.handler.request_streaming:
            self._top_up()

    async def _serve(self) -> None:
        try:
            if self.handler.request_streaming:
                request: Any = self
            else:
                request = await self._open(*self._inbox.complete.popleft())
            reply = self._behave(request)
            if not self.handler.response_streaming:
                await self._answer(self._serialize(await reply))
            elif inspect.isasyncgen(reply):
                async for each in reply:
                    await self.write(each)
            else:
                await reply
            self._end_well()
        except BadMessage as bad:
            self.end(bad.code, bad.text)
        except (CallEnded, grpc.aio.AbortError):
            pass
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED)
        except Exception as error:
            logger.exception("the handler of %s has failed", self._head.path)
            self.end(grpc.StatusCode.UNKNOWN, f"unexpected {type(error).__name__}")

    def _behave(self, request: Any) -> Any:
        handler: Any = self.handler
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return handler.unary_unary(request, self)
            case False, True:
                return handler.unary_stream(request, self)
            case True, False:
                return handler.stream_unary(request, self)
        return handler.stream_stream(request, self)

    async def _answer(self, message: bytes) -> None:
        """Send the only reply, all at once where there is room for it."""
        size = PREFIX.size + len(message)
        if self.is_over or self._has_answered or not self._takes_at_once(size):
            await self.write(message)
            return
        number = self._number
        self._connection.send_window -= size
        self._connection.send_block(number, REPLY_BLOCK, follow=b"".join((
            frame_header(Kind.DATA, 0, number, size), PREFIX.pack(False, len(message)), message,
            frame_header(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, number, len(OK_BLOCK)), OK_BLOCK,
        )))  # fmt: skip
        self._leave()

    def _end_well(self) -> None:
        if self.is_over:
            return
        if self._has_answered:
            self._connection.send_block(self._number, OK_BLOCK, is_last=True)
            self._leave()
        else:
            self.end(grpc.StatusCode.OK)

    def _expire(self) -> None:
        self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "the caller's deadline is over")

    def _leave(self) -> None:
        """Be over: whatever the handler still does, nobody hears of it."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._connection.forget(self._number, self._is_half_closed)
        self._wake()
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _top_up(self) -> None:
        """Let the caller send the rest of a message that has begun, and on a stream more; not before all that came is read."""
        if self._inbox.complete or self._is_half_closed or self.is_over:
            return
        missing = self._inbox.missing_bytes
        wanted = max(missing, STREAM_WINDOW) if self.handler.request_streaming else missing
        if self._credit < missing or self._credit < wanted // 2:
            self._connection.send(window_frame(self._number, wanted - self._credit))
            self._credit = wanted

    async def _open(self, data: Data, is_compressed: bool) -> Any:
        message: Data = data
        if is_compressed:
            args = data, self._head.encoding, self._connection.max_message_bytes
            message = await self._loop.run_in_executor(None, decompress, *args)
        deserialize = self.handler.request_deserializer
        return message if deserialize is None else deserialize(bytes(message))

    def _serialize(self, reply: Any) -> bytes:
        serialize = self.handler.response_serializer
        message: bytes = reply if serialize is None else serialize(reply)
        return message

    def _takes_at_once(self, size: int) -> bool:
        connection = self._connection
        return size <= connection.frame_bytes and size <= self.send_window and size <= connection.send_window and not connection.is_paused

    async def _send(self, data: memoryview) -> None:
        """Send a message in as many pieces as there must be, each when there is room for it."""
        connection = self._connection
        while data:
            size = min(len(data), self.send_window, connection.send_window, connection.frame_bytes)
            if size <= 0 or connection.is_paused:
                await connection.moved.wait()
            else:
                connection.send_window -= size
                self.send_window -= size
                connection.send(frame_header(Kind.DATA, 0, self._number, size) + data[:size])
                data = data[size:]
            if self.is_over:
                raise CallEnded

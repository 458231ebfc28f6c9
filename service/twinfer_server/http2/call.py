"""A call: what its caller sends and is sent, and what a handler sees of it."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc

from .frames import DEFAULT_WINDOW, MAX_WINDOW, Code, ConnectionFault, Flag, Kind, frame, frame_header, window_frame
from .heads import OK_BLOCK, REPLY_BLOCK, REPLY_FIELDS, Head, Metadata, Status, write_block, write_trailers
from .messages import PREFIX, BadMessage, Data, Inbox, decompress
from .reading import Frame

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

STREAM_WINDOW = 2**20
"""How many bytes a caller may send on a stream before any of them is read."""
SPARE_WINDOW = 2**9
"""How many it may send beyond its only message: padding, which may come before any of that."""

TURN_BYTES, WRITE_BYTES = 2**16, 2**10
"""How much a call may write in one turn of the loop, where each write counts as so many bytes more."""


class CallEnded(Exception):
    """The call is over, and nothing more can be read or written."""


class Call(AsyncIterator[Any]):
    """One call. For its handler it is the context, with what is needed of `grpc.aio.ServicerContext`, and a stream's requests.

    Event loop only.
    """

    __slots__ = (
        "_arrived_at", "_connection", "_credit", "_handler", "_has_answered", "_head", "_inbox", "_is_half_closed", "_is_over",
        "_number", "_out", "_pace", "_task", "_timer", "_turn", "_waiter", "_window",
    )  # fmt: skip

    def __init__(self, connection: "Connection", number: int, head: Head, handler: Handler) -> None:
        """Begin a call; a method that takes one message runs when that is there, any other at once."""
        self._arrived_at = time.monotonic()
        self._connection = connection
        self._out = connection.out
        self._number = number
        self._head = head
        self._handler = handler
        self._inbox = Inbox(connection.server.limits.max_message_bytes)
        self._credit = DEFAULT_WINDOW
        """What the caller may still send before more of it is asked for."""
        self._window = connection.out.call_window
        """What the caller still takes."""
        self._pace = 0
        """What it has written since it let others have their turn."""
        self._is_half_closed = False
        """Whether the caller has sent everything."""
        self._has_answered = False
        self._is_over = False
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        """Done when there is something to read."""
        self._turn: asyncio.Future[None] | None = None
        """Done when there may be room to write."""
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout_seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(head.timeout_seconds, self._expire)
        if handler.request_streaming:
            self._begin()
            self._top_up()

    # --- what handlers use --------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        """Give what the caller has said besides its messages; binary values under names that end in -bin."""
        return self._head.metadata

    def time_remaining(self) -> float | None:
        """Give the seconds until the caller's deadline; None if it has set none."""
        seconds = self._head.timeout_seconds
        return None if seconds is None else max(0.0, self._arrived_at + seconds - time.monotonic())

    async def read(self) -> Any:
        """Give the stream's next request, `grpc.aio.EOF` behind the last; raises CallEnded."""
        complete = self._inbox.complete
        while not complete:
            if self._is_over:
                raise CallEnded
            if self._is_half_closed:
                return grpc.aio.EOF
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        request = await self._open(*complete.popleft())
        self._top_up()
        return request

    async def __anext__(self) -> Any:
        """Give the stream's next request."""
        request = await self.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return request

    async def write(self, reply: Any) -> None:
        """Send a reply, once the caller has room for it, one at a time; raises CallEnded."""
        if self._is_over:
            raise CallEnded
        message = self._serialize(reply)
        if not self._has_answered:
            self._has_answered = True
            self._out.send_block(self._number, REPLY_BLOCK)
        await self._send(PREFIX.pack(False, len(message)), memoryview(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status; always raises."""
        self.end(Status(code, details, trailing_metadata))
        raise grpc.aio.AbortError(details)

    # --- what the connection asks and tells ---------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long it has been there."""
        return time.monotonic() - self._arrived_at

    def receive(self, frame: Frame) -> None:
        """Take a piece of what the caller sends; raises ConnectionFault."""
        self._check_open()
        self._credit -= frame.size
        if self._credit < 0:
            self.end(Status(grpc.StatusCode.INTERNAL, "the caller has sent more than it may"))
            return
        try:
            self._inbox.add(frame.data, frame.begin, frame.end)
        except BadMessage as bad:
            self.end(bad.status)
        else:
            self._top_up()
            _wake(self._waiter)

    def half_close(self) -> None:
        """Note that the caller sends nothing more; raises ConnectionFault."""
        if self._is_over:
            return
        self._check_open()
        self._is_half_closed = True
        _wake(self._waiter)
        found = len(self._inbox.complete)
        if not self._inbox.is_between_messages:
            self.end(Status(grpc.StatusCode.INTERNAL, "message: found one that breaks off"))
        elif self._handler.request_streaming:
            return
        elif found == 1:
            self._begin()
        else:
            self.end(Status(grpc.StatusCode.UNIMPLEMENTED, f"messages: found {found}; allowed: one"))

    def widen(self, more_bytes: int) -> None:
        """Take notice that the caller takes more; raises ConnectionFault."""
        had_none = self._window <= 0
        self._window += more_bytes
        if had_none and self._window > 0:
            _wake(self._turn)
        if self._window > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"window: found {self._window} bytes; allowed: at most {MAX_WINDOW}")

    def give_up(self) -> None:
        """End the call without a word, for its caller has gone."""
        self._is_half_closed = True
        self._leave()

    def end(self, status: Status) -> None:
        """End the call with a status, whatever its handler is doing; nothing if it is over."""
        if not self._is_over:
            fields = write_trailers(status)
            self._out.send_block(self._number, write_block(fields if self._has_answered else REPLY_FIELDS + fields), is_last=True)
            self._leave()

    # --- its life -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        handler: Any = self._handler
        try:
            request = self if handler.request_streaming else await self._open(*self._inbox.complete.popleft())
            match handler.request_streaming, handler.response_streaming:
                case False, False:
                    await self._answer(self._serialize(await handler.unary_unary(request, self)))
                case True, False:
                    await self._answer(self._serialize(await handler.stream_unary(request, self)))
                case False, True:
                    await self._stream(handler.unary_stream(request, self))
                case _:
                    await self._stream(handler.stream_stream(request, self))
        except BadMessage as bad:
            self.end(bad.status)
        except (CallEnded, grpc.aio.AbortError):
            return
        except asyncio.CancelledError:
            self.end(Status(grpc.StatusCode.CANCELLED))
        except Exception as error:
            logger.exception("the handler of %s has failed", self._head.path)
            self.end(Status(grpc.StatusCode.UNKNOWN, f"unexpected {type(error).__name__}"))

    async def _answer(self, message: bytes) -> None:
        """Send the only reply, in one piece with the status where there is room for it."""
        number, size = self._number, PREFIX.size + len(message)
        if self._is_over or not self._out.takes(size, self._window):
            await self.write(message)
            self._end_well()
            return
        self._out.spend(size)
        data = frame_header(Kind.DATA, 0, number, size) + PREFIX.pack(False, len(message)) + message
        trailers = frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, number, OK_BLOCK)
        self._out.send_block(number, REPLY_BLOCK, behind=data + trailers)
        self._leave()

    async def _stream(self, replies: Any) -> None:
        """Send what an asynchronous generator gives, or let a coroutine write."""
        if inspect.isasyncgen(replies):
            async with aclosing(replies):
                async for reply in replies:
                    await self.write(reply)
        else:
            await replies
        self._end_well()

    def _end_well(self) -> None:
        if self._is_over:
            return
        if self._has_answered:
            self._out.send_block(self._number, OK_BLOCK, is_last=True)
            self._leave()
        else:
            self.end(Status(grpc.StatusCode.OK))

    def _check_open(self) -> None:
        if self._is_half_closed:
            raise ConnectionFault(Code.STREAM_CLOSED, f"found more on stream {self._number}, whose end has been sent")

    def _expire(self) -> None:
        self.end(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline that the caller set is over"))

    def _leave(self) -> None:
        """Be over: whatever the handler still does, nobody hears of it."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._connection.forget(self._number, is_half_closed=self._is_half_closed)
        _wake(self._waiter)
        _wake(self._turn)
        task, self._task = self._task, None  # which, cancelled, has a traceback, and that this call
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _top_up(self) -> None:
        """Let the caller send the rest of a message that has begun and, on a stream, more; not before what came is read."""
        if self._inbox.complete or self._is_half_closed or self._is_over:
            return
        missing = self._inbox.missing_bytes
        wanted = max(missing, STREAM_WINDOW if self._handler.request_streaming else SPARE_WINDOW)
        if self._credit < missing or self._credit < wanted // 2:
            self._out.send(window_frame(self._number, wanted - self._credit))
            self._credit = wanted

    async def _open(self, data: Data, is_compressed: bool) -> Any:
        if is_compressed:
            limit = self._connection.server.limits.max_message_bytes
            data = await asyncio.to_thread(decompress, data, self._head.encoding, limit)
        deserialize = self._handler.request_deserializer
        if deserialize is None:
            return data
        try:
            return deserialize(bytes(data))
        except Exception as error:
            raise BadMessage(grpc.StatusCode.INTERNAL, f"message: found what cannot be parsed ({type(error).__name__})") from error

    def _serialize(self, reply: Any) -> bytes:
        serialize = self._handler.response_serializer
        message: bytes = reply if serialize is None else serialize(reply)
        return message

    async def _send(self, prefix: bytes, data: memoryview) -> None:
        """Send a message in as many pieces as there must be, each when there is room for it."""
        try:
            while prefix or data:
                size = min(len(prefix) + len(data), self._out.room(self._window))
                if size:
                    self._out.spend(size)
                    self._window -= size
                    first, prefix = prefix[:size], prefix[size:]
                    rest = size - len(first)
                    self._out.send(frame_header(Kind.DATA, 0, self._number, size) + first + data[:rest])
                    data = data[rest:]
                    await self._keep_pace(size)
                else:
                    await self._wait_for_room()
                if self._is_over:
                    raise CallEnded
        finally:
            self._out.move()

    async def _keep_pace(self, size: int) -> None:
        """Let others have their turn now and then: a client may read as fast as a handler writes, and then nothing else would."""
        self._pace += size + WRITE_BYTES
        if self._pace > TURN_BYTES:
            self._pace = 0
            await asyncio.sleep(0)

    async def _wait_for_room(self) -> None:
        self._turn = asyncio.get_running_loop().create_future()
        if self._window > 0:
            self._out.enqueue(self._turn)
        else:
            self._out.move()
        try:
            await self._turn
        finally:
            self._out.dequeue(self._turn)


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)

"""A call: what its caller sends and is sent, and what a handler sees of it."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc

from .frames import DEFAULT_WINDOW, Code, ConnectionFault, window_frame
from .heads import Head, Metadata, Status
from .messages import BadMessage, Data, Inbox, decompress
from .reading import Frame
from .writer import CallEnded, Writer

if TYPE_CHECKING:
    from .calls import Calls

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

STREAM_WINDOW = 2**20
"""How many bytes a caller may send on a stream before any of them is read."""
LEAST_DEADLINE_SECONDS = 0.005
"""Whoever gives a call less time has not meant to wait for it."""
SLOWEST_BYTES_PER_SECOND = 2**16
"""Whoever sends a large message has so much more time for it."""
SPARE_WINDOW = 2**9
"""How many it may send beyond its only message: padding, which may come before any of that."""


class Call(AsyncIterator[Any]):
    """One call. For its handler it is the context, with what is needed of `grpc.aio.ServicerContext`, and a stream's requests.

    Event loop only.
    """

    __slots__ = (
        "_arrived_at", "_calls", "_credit", "_handler", "_head", "_inbox", "_is_half_closed", "_number", "_task", "_waiter",
        "_writer",
    )  # fmt: skip

    def __init__(self, calls: "Calls", number: int, head: Head, handler: Handler) -> None:
        """Begin a call; a method that takes one message runs when that is there, any other at once."""
        self._arrived_at = time.monotonic()
        self._calls = calls
        self._number = number
        self._head = head
        self._handler = handler
        self._inbox = Inbox(calls.server.limits.max_message_bytes)
        self._credit = DEFAULT_WINDOW
        """What the caller may still send before more of it is asked for."""
        self._writer = Writer(calls.out, number)
        self._is_half_closed = False
        """Whether the caller has sent everything."""
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        """Done when there is something to read."""
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
            if self._writer.is_over:
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
        await self._writer.write(self._serialize(reply))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status; always raises."""
        self.end(Status(code, details, trailing_metadata))
        raise grpc.aio.AbortError(details)

    # --- what the connection asks and tells ---------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The method that is called."""
        return self._head.path

    @property
    def seconds(self) -> float:
        """How long it has been there."""
        return time.monotonic() - self._arrived_at

    @property
    def is_due(self) -> bool:
        """Whether its caller has reason to give it up: by his clock, which began earlier, its deadline may be over."""
        deadline = self._head.timeout_seconds
        return deadline is not None and deadline >= LEAST_DEADLINE_SECONDS and self.seconds >= deadline / 2

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
            self._wake()

    def half_close(self) -> None:
        """Note that the caller sends nothing more; raises ConnectionFault."""
        if self._writer.is_over:
            return
        self._check_open()
        self._is_half_closed = True
        self._wake()
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
        self._writer.widen(more_bytes)

    def look(self, now: float) -> None:
        """End the call if its time is up: the caller's deadline, or how long its only message or reply may take on its way."""
        seconds, deadline = now - self._arrived_at, self._head.timeout_seconds
        if deadline is not None and seconds >= deadline:
            self.end(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline that the caller set is over"))
        elif not self._handler.request_streaming and not self._is_half_closed:
            limit = self._calls.server.limits.message_seconds + self._inbox.partial_bytes / SLOWEST_BYTES_PER_SECOND
            if seconds >= limit:
                self.end(Status(grpc.StatusCode.DEADLINE_EXCEEDED, f"message: found none, or a part, after {limit:.3g} s"))
        elif not self._handler.response_streaming and self._writer.blocked_at:
            limit = self._calls.server.limits.message_seconds
            if now - self._writer.blocked_at >= limit:
                self.end(Status(grpc.StatusCode.DEADLINE_EXCEEDED, f"reply: not taken for {limit:g} s"))

    def give_up(self) -> None:
        """End the call without a word, for its caller has gone."""
        self._is_half_closed = True
        self._leave()

    def end(self, status: Status) -> None:
        """End the call with a status, whatever its handler is doing; nothing if it is over."""
        if not self._writer.is_over:
            self._writer.end(status)
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
        """Send the only reply."""
        if not self._writer.is_over and self._writer.write_only(message):
            self._leave()
        else:
            await self._writer.write(message)
            self.end(Status(grpc.StatusCode.OK))

    async def _stream(self, replies: Any) -> None:
        """Send what an asynchronous generator gives, or let a coroutine write."""
        if inspect.isasyncgen(replies):
            async with aclosing(replies):
                async for reply in replies:
                    await self.write(reply)
        else:
            await replies
        self.end(Status(grpc.StatusCode.OK))

    def _check_open(self) -> None:
        if self._is_half_closed:
            raise ConnectionFault(Code.STREAM_CLOSED, f"found more on stream {self._number}, whose end has been sent")

    def _leave(self) -> None:
        """Be over: whatever the handler still does, nobody hears of it."""
        self._writer.close()
        self._calls.forget(self._number, is_half_closed=self._is_half_closed)
        self._wake()
        task, self._task = self._task, None  # which, cancelled, has a traceback, and that this call
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _top_up(self) -> None:
        """Let the caller send the rest of a message that has begun and, on a stream, more; not before what came is read."""
        if self._inbox.complete or self._is_half_closed or self._writer.is_over:
            return
        missing = self._inbox.missing_bytes
        wanted = max(missing, STREAM_WINDOW if self._handler.request_streaming else SPARE_WINDOW)
        if self._credit < missing or self._credit < wanted // 2:
            self._calls.out.send(window_frame(self._number, wanted - self._credit))
            self._credit = wanted

    async def _open(self, data: Data, is_compressed: bool) -> Any:
        if is_compressed:
            limit = self._calls.server.limits.max_message_bytes
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

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""RPC streams: messages in, replies out, so many of them in flight at a time, and an end for all streams when the server drains."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from ..errors import Draining
from .boundary import Context, current_span, fail, note_arrival

AnswerMessage = Callable[[bytes, Context], Coroutine[Any, Any, bytes]]
"""Answers one message of an RPC stream; failures are replies, too."""
Reply = asyncio.Task[bytes]
Replies = asyncio.Queue["Reply | None"]


class Streams:
    """The open RPC streams of one method."""

    def __init__(self, answer: AnswerMessage, max_in_flight: int, *, is_in_order: bool) -> None:
        """Answer each message with `answer`, at most so many of one RPC stream at a time, in their order or as they are ready."""
        self._answer = answer
        self._max_in_flight = max_in_flight
        self._is_in_order = is_in_order
        self._readers: dict[asyncio.Task[None], asyncio.Task[None]] = {}
        """By the task of each stream's handler."""
        self._is_draining = False

    async def drain(self) -> None:
        """Read nothing more, and return when all that was read is answered and the RPC streams have ended."""
        self._is_draining = True
        for reader in self._readers.values():
            reader.cancel()
        while self._readers:
            await asyncio.wait(set(self._readers))

    async def handle(self, requests: object, context: Context) -> None:
        """Serve an RPC stream: one reader, one task per message in flight, and one writer, as replies go out one at a time."""
        in_flight: set[Reply] = set()
        replies: Replies = asyncio.Queue()
        # A message is in flight until its reply is written: a caller who does not read is not read from.
        room = asyncio.Semaphore(self._max_in_flight)
        reader = asyncio.create_task(self._read(context, in_flight, replies, room))
        writer = asyncio.create_task(_write(context, replies, room))
        handler = asyncio.current_task()
        assert handler is not None
        self._readers[handler] = reader
        handler.add_done_callback(self._readers.pop)
        if self._is_draining:
            reader.cancel()
        try:
            was_cut_short = await _was_cancelled(reader)
            if in_flight:
                await asyncio.wait(in_flight)
            replies.put_nowait(None)
            await writer
        finally:
            tasks = (reader, writer, *in_flight)
            for task in tasks:
                task.cancel()
            # Where the caller has gone away, what they raise because of that concerns nothing else.
            await asyncio.gather(*tasks, return_exceptions=True)
        if was_cut_short:
            await fail(context, Draining("the server is shutting down; no more requests are read from this stream"))

    async def _read(self, context: Context, in_flight: set[Reply], replies: Replies, room: asyncio.Semaphore) -> None:
        await room.acquire()
        answer = self._answer if current_span.get() is None else self._answer_in_span
        while (data := await context.read()) is not grpc.aio.EOF:
            note_arrival()
            reply = asyncio.create_task(answer(data, context))
            in_flight.add(reply)
            reply.add_done_callback(in_flight.discard)
            if self._is_in_order:
                replies.put_nowait(reply)
            else:
                reply.add_done_callback(replies.put_nowait)
            await room.acquire()

    async def _answer_in_span(self, data: bytes, context: Context) -> bytes:
        """Answer a message inside a span of its own; in a task of its own."""
        stream = current_span.get()
        assert stream is not None
        message = stream.begin("message", time.monotonic())
        current_span.set(message)
        try:
            return await self._answer(data, context)
        finally:
            message.end(time.monotonic())


async def _was_cancelled(task: "asyncio.Task[None]") -> bool:
    """Wait for a task to end, and return whether another one cancelled it; a cancellation of the waiting itself is raised."""
    await asyncio.wait({task})
    if task.cancelled():
        return True
    task.result()  # raises what the task raised
    return False


async def _write(context: Context, replies: Replies, room: asyncio.Semaphore) -> None:
    while (reply := await replies.get()) is not None:
        await context.write(await reply)
        room.release()

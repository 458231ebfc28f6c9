"""Streams: messages in, replies out, as many at a time as a stream may have in hand, and an end for all when the server drains."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from ..errors import Draining
from .boundary import Context, fail

AnswerMessage = Callable[[bytes, Context], Coroutine[Any, Any, bytes]]
"""Answers one message of a stream; failures are replies, too."""
Reply = asyncio.Task[bytes]


class Streams:
    """The open streams of one method."""

    def __init__(self, answer: AnswerMessage, max_in_hand: int, *, is_in_order: bool) -> None:
        """Answer each message with `answer`, of one stream at most so many at a time; in their order, or as they are ready."""
        self._answer = answer
        self._max_in_hand = max_in_hand
        self._is_in_order = is_in_order
        self._readers: dict[asyncio.Task[None], asyncio.Task[None]] = {}
        """By each stream's handler."""
        self._is_draining = False

    async def drain(self) -> None:
        """Read nothing more, and return when what was read is answered and the streams have ended."""
        self._is_draining = True
        for reader in self._readers.values():
            reader.cancel()
        while self._readers:
            await asyncio.wait(set(self._readers))

    async def handle(self, requests: object, context: Context) -> None:
        """Serve a stream: one reader, one task per message in hand, and one writer, for a stream's replies go out one at a time."""
        in_hand: set[Reply] = set()
        replies: asyncio.Queue[Reply | None] = asyncio.Queue()
        # A message is in hand until its reply is written: a caller who does not read is not read from.
        room = asyncio.Semaphore(self._max_in_hand)
        reader = asyncio.create_task(self._read(context, in_hand, replies, room))
        writer = asyncio.create_task(_write(context, replies, room))
        handler = asyncio.current_task()
        assert handler is not None
        self._readers[handler] = reader
        handler.add_done_callback(self._readers.pop)
        if self._is_draining:
            reader.cancel()
        try:
            was_cut_short = await _was_cancelled(reader)
            if in_hand:
                await asyncio.wait(in_hand)
            replies.put_nowait(None)
            await writer
        finally:
            tasks = (reader, writer, *in_hand)
            for task in tasks:
                task.cancel()
            # Where the caller has gone away, what they raise of it is nobody's concern.
            await asyncio.gather(*tasks, return_exceptions=True)
        if was_cut_short:
            await fail(context, Draining("the server is shutting down; no more rows are read from this stream"))

    async def _read(
        self, context: Context, in_hand: set[Reply], replies: "asyncio.Queue[Reply | None]", room: asyncio.Semaphore
    ) -> None:  # fmt: skip
        await room.acquire()
        while (data := await context.read()) is not grpc.aio.EOF:
            reply = asyncio.create_task(self._answer(data, context))
            in_hand.add(reply)
            reply.add_done_callback(in_hand.discard)
            if self._is_in_order:
                replies.put_nowait(reply)
            else:
                reply.add_done_callback(replies.put_nowait)
            await room.acquire()


async def _was_cancelled(task: "asyncio.Task[None]") -> bool:
    """Wait for a task to end; whether somebody else cancelled it. If the waiting itself is cancelled, so it stays."""
    await asyncio.wait({task})
    if task.cancelled():
        return True
    task.result()  # raises what the task raised
    return False


async def _write(context: Context, replies: "asyncio.Queue[Reply | None]", room: asyncio.Semaphore) -> None:
    while (reply := await replies.get()) is not None:
        await context.write(await reply)
        room.release()

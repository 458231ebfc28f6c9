"""Streams: requests in, responses out in the same order, as many at a time as a stream may have in hand."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from ...errors import Draining
from ..boundary import Context, fail

Respond = Callable[[bytes, Context], Coroutine[Any, Any, bytes]]
"""Answers one message of a stream; its failures are answers, too."""


class Streams:
    """The open streams of one method."""

    def __init__(self, respond: Respond, max_in_hand: int) -> None:
        """Answer each message with `respond`; of one stream, at most so many at a time."""
        self._respond = respond
        self._max_in_hand = max_in_hand
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
        """Serve one stream: a reader starts a task for each message, and this one writes what they give, in their order."""
        responses: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        # A message is in hand until its response is written: a caller who does not read is not read from.
        room = asyncio.Semaphore(self._max_in_hand)
        reader = asyncio.create_task(self._read(context, responses, room))
        reader.add_done_callback(lambda _: responses.put_nowait(None))  # also where it is cancelled before it begins
        handler = asyncio.current_task()
        assert handler is not None
        self._readers[handler] = reader
        handler.add_done_callback(self._readers.pop)
        if self._is_draining:
            reader.cancel()
        task: asyncio.Task[bytes] | None = None
        try:
            while (task := await responses.get()) is not None:
                await context.write(await task)
                room.release()
        finally:
            left = [reader, *([task] if task else []), *(waiting for waiting in _empty(responses) if waiting)]
            for waiting in left:
                waiting.cancel()
            # Where the caller has gone away, what they raise of it is nobody's concern.
            await asyncio.gather(*left, return_exceptions=True)
        if reader.cancelled():
            await fail(context, Draining("the server is shutting down; no more requests are read from this stream"))

    async def _read(
        self, context: Context, responses: "asyncio.Queue[asyncio.Task[bytes] | None]", room: asyncio.Semaphore
    ) -> None:  # fmt: skip
        await room.acquire()
        while (data := await context.read()) is not grpc.aio.EOF:
            responses.put_nowait(asyncio.create_task(self._respond(data, context)))
            await room.acquire()


def _empty(queue: "asyncio.Queue[asyncio.Task[bytes] | None]") -> "list[asyncio.Task[bytes] | None]":
    return [queue.get_nowait() for _ in range(queue.qsize())]

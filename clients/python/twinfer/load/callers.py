"""The ways to ask: a call for each row, streams, or a call for several rows. Bytes are made beforehand, so that asking is cheap."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from twinfer.channel import SERVICE
from twinfer.errors import DeadlinePassed, InternalError, TwinferError, Unavailable
from twinfer.statuses import error_from_call, error_from_message
from twinfer.v1 import ensemble_service_pb2 as pb

Reply = pb.InferResponse | TwinferError


class Caller(Protocol):
    """Asks for rows by their numbers."""

    async def ask(self, rows: Sequence[int]) -> Sequence[Reply]:
        """Give what came of each row, in their order; never raises TwinferError."""

    async def close(self) -> None:
        """Give up what is under way."""


class UnaryCaller:
    """A call of Infer for each row."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], requests: Sequence[pb.InferRequest], timeout: float) -> None:
        self._calls: Any = itertools.cycle([channel.unary_unary(f"/{SERVICE}/Infer") for channel in channels])
        self._requests = [request.SerializeToString() for request in requests]
        self._timeout = timeout

    async def ask(self, rows: Sequence[int]) -> Sequence[Reply]:
        """Ask for one row; see `Caller.ask`."""
        try:
            reply = await next(self._calls)(self._requests[rows[0]], timeout=self._timeout)
        except grpc.RpcError as failure:
            return [error_from_call(failure)]
        return [pb.InferResponse.FromString(reply)]

    async def close(self) -> None:
        """Do nothing: closing the channels ends the calls."""


class BatchCaller:
    """A call of BatchInfer for several rows."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], requests: Sequence[pb.InferRequest], timeout: float) -> None:
        self._calls: Any = itertools.cycle([channel.unary_unary(f"/{SERVICE}/BatchInfer") for channel in channels])
        # One message after the other is how protobuf writes the rows of one.
        self._requests = [pb.BatchInferRequest(requests=[request]).SerializeToString() for request in requests]
        self._timeout = timeout

    async def ask(self, rows: Sequence[int]) -> Sequence[Reply]:
        """Ask for all rows at once; see `Caller.ask`."""
        try:
            reply = await next(self._calls)(b"".join(self._requests[row] for row in rows), timeout=self._timeout)
        except grpc.RpcError as failure:
            return [error_from_call(failure)] * len(rows)
        found = [_read(result) for result in pb.BatchInferResponse.FromString(reply).results]
        if len(found) != len(rows):
            return [InternalError(f"the server answered {len(found)} rows of {len(rows)}.")] * len(rows)
        return found

    async def close(self) -> None:
        """Do nothing: closing the channels ends the calls."""


class StreamCaller:
    """A stream of InferStream on each connection; one that fails is opened again."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], requests: Sequence[pb.InferRequest], timeout: float) -> None:
        self._methods: Any = [channel.stream_stream(f"/{SERVICE}/InferStream") for channel in channels]
        self._requests = []
        for request in requests:
            message = pb.InferStreamRequest(request=request)
            message.request.options.timeout.FromNanoseconds(round(timeout * 1e9))
            self._requests.append(message.SerializeToString())
        self._timeout = timeout
        self._streams = [_Stream(method()) for method in self._methods]
        self._numbers = itertools.count()

    async def ask(self, rows: Sequence[int]) -> Sequence[Reply]:
        """Send one row down the next stream; see `Caller.ask`."""
        number = next(self._numbers)
        place = number % len(self._streams)
        if self._streams[place].is_over:
            self._streams[place] = _Stream(self._methods[place]())
        # One message after the other is one with the fields of both.
        named = pb.InferStreamRequest(request=pb.InferRequest(request_id=str(number))).SerializeToString()
        try:
            async with asyncio.timeout(self._timeout):
                return [await self._streams[place].ask(str(number), self._requests[rows[0]] + named)]
        except TimeoutError:
            return [DeadlinePassed(f"the stream has not answered within {self._timeout:g} s.")]

    async def close(self) -> None:
        """End the streams, whatever they owe."""
        for stream in self._streams:
            await stream.close()


class _Stream:
    """One stream: whose answer is whose."""

    def __init__(self, call: Any) -> None:
        self.is_over = False
        self._call = call
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._turn = asyncio.Lock()  # gRPC takes one message at a time
        self._reader = asyncio.create_task(self._read())

    async def ask(self, request_id: str, message: bytes) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            async with self._turn:
                await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the stream has ended; the reader hears why
        try:
            return await answer
        finally:
            self._waiting.pop(request_id, None)

    async def close(self) -> None:
        self._call.cancel()
        # Until the end is heard: one that comes when the loop is closed is an error in the next loop.
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        why: Reply = Unavailable("the server ended the stream.")
        try:
            async for reply in self._call:
                result = pb.InferStreamResponse.FromString(reply)
                answer = self._waiting.get(result.request_id)
                if answer and not answer.done():
                    answer.set_result(_read(result))
        except grpc.RpcError as failure:
            why = error_from_call(failure)
        self.is_over = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(why)


def _read(result: pb.InferStreamResponse | pb.BatchInferResult) -> Reply:
    return error_from_message(result.error) if result.HasField("error") else result.response

"""The client for an event loop; `client.py` has the same methods for everything else."""

# ruff: noqa: ASYNC109 - a timeout here is a gRPC deadline, which the server hears of; asyncio.timeout is not

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, Unpack, cast

import grpc
import grpc.aio

from twinfer.channel import CHECK, DEFAULT_STREAM_SECONDS, DEFAULT_TIMEOUT_SECONDS, DEFAULT_WINDOW, Connection
from twinfer.health import PAUSE_SECONDS, REQUEST, Readiness
from twinfer.inputs import takes_time
from twinfer.many import BatchRequest, Window
from twinfer.requests import Options, Request
from twinfer.results import Outcome, Response
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2

Made = TypeVar("Made")


class AsyncClient(Connection):
    """Asks a twinfer server from an event loop, which must be running when the client is made.

    async with AsyncClient("localhost:50051") as client:
        response = await client.infer({"image": Path("five.png"), "text": "fve"})
    """

    _transport: ClassVar = grpc.aio

    async def infer(self, inputs: Request, *, timeout: float | None = None, **options: Unpack[Options]) -> Response:
        """Return the fused answer to one request; see `Client.infer`. Files are read and images compressed on a thread."""
        request = await _make([inputs], lambda: self._request(inputs, options))
        return Response.from_message(await self._call(self._stub.Infer, request, timeout))

    async def infer_batch(
        self, requests: Iterable[Request], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> list[Outcome]:  # fmt: skip
        """Return an outcome per request, in their order, of one call for all of them; see `Client.infer_batch`."""
        requests = list(requests)
        batch = await _make(requests, lambda: BatchRequest(requests, options, self._max_message_bytes))
        return batch.outcomes(await self._call(self._stub.BatchInfer, batch.message, timeout)) if batch else []

    async def infer_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        timeout: float | None = None,
        window: int = DEFAULT_WINDOW,
        stream_timeout: float = DEFAULT_STREAM_SECONDS,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Outcome, None]:
        """Yield an outcome per request over one RPC stream, each as soon as it is there, in any order; see `Client.infer_many`.

        The requests may come from an async generator too, at whatever pace; at most `window` of them are taken and not yet
        yielded. A caller who leaves the loop early closes the generator (`contextlib.aclosing`), and so the stream.
        """
        sent = Window(options, self._seconds(timeout), self._max_message_bytes)
        room = asyncio.Semaphore(window)
        # Outcomes, and each task as it ends. Unbounded, for `room` bounds what can be in it.
        arrivals: asyncio.Queue[Outcome | asyncio.Task[None]] = asyncio.Queue()
        call = self._stub.InferStream(timeout=stream_timeout, metadata=self._metadata)

        async def send() -> None:
            async for message in _messages(requests, sent, room):
                if isinstance(message, Outcome):
                    arrivals.put_nowait(message)
                elif not await _write(call.write(message)):
                    return
            await _write(call.done_writing())

        async def receive() -> None:
            async for response in call:
                arrivals.put_nowait(sent.outcome(response))
            sent.end()

        sender, receiver = asyncio.create_task(send()), asyncio.create_task(receive())
        sender.add_done_callback(arrivals.put_nowait)
        receiver.add_done_callback(arrivals.put_nowait)
        try:
            while (arrival := await arrivals.get()) is not receiver:
                if isinstance(arrival, Outcome):
                    room.release()
                    yield arrival
                else:
                    arrival.result()  # the sender's: raises what the caller's requests raised
            receiver.result()
        except grpc.RpcError as failure:
            raise await asyncio.to_thread(self._error, failure) from None
        finally:
            sender.cancel()
            call.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    async def describe(self, *, timeout: float | None = None) -> ensemble_pb2.Ensemble:
        """Return the ensemble that is served; see `Client.describe`."""
        reply = await self._call(self._stub.GetEnsemble, ensemble_service_pb2.GetEnsembleRequest(), timeout)
        return cast(ensemble_pb2.Ensemble, reply.ensemble)

    async def wait_until_ready(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Return once the server says that it can answer; see `Client.wait_until_ready`."""
        check = self._channel.unary_unary(CHECK)  # bytes to bytes
        readiness = Readiness(timeout, self._proxy)
        while True:
            try:
                if readiness.is_reached(await check(REQUEST, timeout=readiness.remaining_seconds())):
                    return
            except grpc.RpcError as failure:
                readiness.failed(failure)
            await asyncio.sleep(PAUSE_SECONDS)

    async def close(self) -> None:
        """Close the connection; calls under way end as cancelled."""
        await self._channel.close()

    async def _call(self, method: Any, request: object, timeout: float | None) -> Any:
        """Return the reply of a unary call. Raises TwinferError."""
        try:
            return await method(request, timeout=self._seconds(timeout), metadata=self._metadata)
        except grpc.RpcError as failure:
            raise await asyncio.to_thread(self._error, failure) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


async def _make(requests: Sequence[Request], make: Callable[[], Made]) -> Made:
    """Return the message that `make` makes of requests: here, or on a thread where that would hold the loop."""
    if any(isinstance(one, Mapping) and any(map(takes_time, one.values())) for one in requests):
        return await asyncio.to_thread(make)
    return make()


async def _write(writing: Awaitable[None]) -> bool:
    """Write to a stream; return False if it has ended, which the receiving task finds too, together with the reason."""
    try:
        await writing
    except (grpc.RpcError, asyncio.InvalidStateError):
        return False
    return True


async def _messages(
    requests: Iterable[Request] | AsyncIterable[Request], sent: Window, room: asyncio.Semaphore
) -> AsyncIterator[ensemble_service_pb2.InferStreamRequest | Outcome]:
    """Yield what `sent` makes of each request; none is taken before there is room for it."""
    rest = aiter(requests if isinstance(requests, AsyncIterable) else _each(requests))
    while True:
        await room.acquire()
        try:
            request = await anext(rest)
        except StopAsyncIteration:
            return
        yield await _make([request], lambda request=request: sent.add(request))  # type: ignore[misc]


async def _each(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request

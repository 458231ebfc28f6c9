"""The client for an event loop; `client.py` has the same methods for everything else."""

# ruff: noqa: ASYNC109 - a timeout here is a gRPC deadline, which the server hears of; asyncio.timeout is not

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

import grpc
import grpc.aio

from twinfer import channel
from twinfer.answers import Outcome, Response
from twinfer.batch import BatchRequest
from twinfer.health import CHECK, Readiness
from twinfer.inputs import takes_time
from twinfer.requests import Options, Row, as_request, check_size
from twinfer.statuses import error_from_call
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2, ensemble_service_pb2_grpc
from twinfer.window import Window

Made = TypeVar("Made")


class AsyncClient:
    """Asks a twinfer server from an event loop, which must be running when the client is made.

    async with AsyncClient("localhost:50051") as client:
        answer = await client.infer({"image": Path("five.png"), "text": "fve"})
    """

    def __init__(
        self,
        target: str = channel.DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = channel.DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = channel.DEFAULT_MAX_MESSAGE_BYTES,
        attempts: int = channel.DEFAULT_ATTEMPTS,
        options: Sequence[channel.Option] = (),
    ) -> None:
        """Make a client; see `Client`."""
        self._channel: grpc.aio.Channel = channel.connect(grpc.aio, target, credentials, max_message_bytes, attempts, options)
        self._stub = ensemble_service_pb2_grpc.EnsembleServiceStub(self._channel)
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes

    async def infer(self, inputs: Row, *, timeout: float | None = None, **options: Unpack[Options]) -> Response:
        """Return the fused answer to one row; see `Client.infer`. Files are read and images compressed on a thread."""
        request = await _make([inputs], lambda: as_request(inputs, options))
        check_size(request, self._max_message_bytes)
        return Response.from_message(await self._call(self._stub.Infer, request, timeout))

    async def infer_batch(
        self, rows: Iterable[Row], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> list[Outcome]:  # fmt: skip
        """Return an outcome per row, in their order, of one call for all of them; see `Client.infer_batch`."""
        rows = list(rows)
        batch = await _make(rows, lambda: BatchRequest(rows, options, self._max_message_bytes))
        return batch.outcomes(await self._call(self._stub.BatchInfer, batch.message, timeout)) if batch else []

    async def infer_many(
        self,
        rows: Iterable[Row] | AsyncIterable[Row],
        *,
        timeout: float | None = None,
        window: int = channel.DEFAULT_WINDOW,
        stream_timeout: float = channel.DEFAULT_STREAM_SECONDS,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Outcome, None]:
        """Yield an outcome per row over one stream, each as soon as it is there, in any order; see `Client.infer_many`.

        The rows may come from an async generator too, at whatever pace; at most `window` of them are taken and not yet
        yielded. Who leaves the loop early closes the generator (`contextlib.aclosing`), and so the stream.
        """
        sent = Window(options, self._timeout if timeout is None else timeout, self._max_message_bytes)
        room = asyncio.Semaphore(window)
        # Outcomes, and each task as it ends. Unbounded, for `room` bounds what can be in it.
        arrivals: asyncio.Queue[Outcome | asyncio.Task[None]] = asyncio.Queue()
        call = self._stub.InferStream(timeout=stream_timeout)

        async def send() -> None:
            source = _each(rows)
            while True:
                await room.acquire()
                try:
                    row = await anext(source)
                except StopAsyncIteration:
                    break
                message = await _make([row], lambda row=row: sent.add(row))  # type: ignore[misc]
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
                    arrival.result()  # the sender's: raises what the caller's rows raised
            receiver.result()
        except grpc.RpcError as failure:
            raise error_from_call(failure) from None
        finally:
            sender.cancel()
            call.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    async def describe(self, *, timeout: float | None = None) -> ensemble_pb2.Ensemble:
        """Return the ensemble that is served: inputs, members, fusion, limits, plans. Raises TwinferError."""
        reply = await self._call(self._stub.GetEnsemble, ensemble_service_pb2.GetEnsembleRequest(), timeout)
        return cast(ensemble_pb2.Ensemble, reply.ensemble)

    async def wait_until_ready(self, timeout: float = channel.DEFAULT_TIMEOUT_SECONDS) -> None:
        """Return once the server says that it can answer; see `Client.wait_until_ready`."""
        check: Any = self._channel.unary_unary(CHECK)  # bytes to bytes
        readiness = Readiness(timeout)
        while True:
            try:
                reply = await check(readiness.request, timeout=readiness.remaining_seconds(), wait_for_ready=True)
            except grpc.RpcError as failure:
                readiness.failed(failure)
            else:
                if readiness.is_reached(reply):
                    return
            await asyncio.sleep(readiness.pause_seconds())

    async def close(self) -> None:
        """Close the connection; calls under way end as cancelled."""
        await self._channel.close()

    async def _call(self, method: Any, request: object, timeout: float | None) -> Any:
        """Make a unary call, never without a deadline."""
        try:
            return await method(request, timeout=self._timeout if timeout is None else timeout)
        except grpc.RpcError as failure:
            raise error_from_call(failure) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


async def _make(rows: Sequence[Row], make: Callable[[], Made]) -> Made:
    """Make a message of rows: here, or on a thread where that would hold the loop."""
    if any(isinstance(row, Mapping) and any(map(takes_time, row.values())) for row in rows):
        return await asyncio.to_thread(make)
    return make()


async def _write(writing: Awaitable[None]) -> bool:
    """Write to a stream; False if it has ended, which the receiving side hears too, together with the reason."""
    try:
        await writing
    except (grpc.RpcError, asyncio.InvalidStateError):
        return False
    return True


async def _each(rows: Iterable[Row] | AsyncIterable[Row]) -> AsyncIterator[Row]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row

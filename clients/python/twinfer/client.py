"""The client that blocks; `aio.py` has the same methods for an event loop."""

import queue
import time
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc

from twinfer import channel
from twinfer.answers import Outcome, Response
from twinfer.batch import BatchRequest
from twinfer.health import CHECK, Readiness
from twinfer.requests import Options, Row, as_request, check_size
from twinfer.statuses import error_from_call
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2, ensemble_service_pb2_grpc
from twinfer.window import Window


class Client:
    """Asks a twinfer server, and waits for what it says. Threads may share one.

    with Client("localhost:50051") as client:
        answer = client.infer({"image": Path("five.png"), "text": "fve"})
        print(answer.label, answer.probability)
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
        """Make a client; the connection is made by the first call.

        target: HOST:PORT, or any name that gRPC resolves.
        credentials: for TLS (`grpc.ssl_channel_credentials()`); without, the connection is in the clear.
        timeout: seconds that a call may take, its retries included, unless the call says otherwise.
        attempts: how often a call is tried while the server is unavailable or overloaded, the first included.
        options: further gRPC channel options; they win over the client's own.
        """
        self._channel: grpc.Channel = channel.connect(grpc, target, credentials, max_message_bytes, attempts, options)
        self._stub = ensemble_service_pb2_grpc.EnsembleServiceStub(self._channel)
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes

    def infer(self, inputs: Row, *, timeout: float | None = None, **options: Unpack[Options]) -> Response:
        """Return the fused answer to one row.

        inputs: values by input name (see `describe`), or a request from `make_request`.
        timeout: seconds until the answer must be here; default: the client's.
        Raises TwinferError; TypeError, ValueError or OSError for inputs that cannot be sent.
        """
        request = as_request(inputs, options)
        check_size(request, self._max_message_bytes)
        return Response.from_message(self._call(self._stub.Infer, request, timeout))

    def infer_batch(self, rows: Iterable[Row], *, timeout: float | None = None, **options: Unpack[Options]) -> list[Outcome]:
        """Return an outcome per row, in their order, of one call for all of them: the cheapest way to ask many at once.

        A row that fails is an outcome with an error. The call carries at most `describe().limits.max_batch_requests` rows, and
        no more bytes than any message; for more there is `infer_many`.

        timeout: seconds until the answers must be here; default: the client's.
        Raises TwinferError if the call itself fails; TypeError, ValueError or OSError for inputs that cannot be sent.
        """
        batch = BatchRequest(rows, options, self._max_message_bytes)
        return batch.outcomes(self._call(self._stub.BatchInfer, batch.message, timeout)) if batch else []

    def infer_many(
        self,
        rows: Iterable[Row],
        *,
        timeout: float | None = None,
        window: int = channel.DEFAULT_WINDOW,
        stream_timeout: float = channel.DEFAULT_STREAM_SECONDS,
        **options: Unpack[Options],
    ) -> Generator[Outcome, None, None]:
        """Yield an outcome per row over one stream, each as soon as it is there, in any order.

        A row that fails is an outcome with an error, and the stream lives on. The rows may come from a generator: at
        most `window` of them are taken and not yet yielded. The window is filled before the first outcome is waited
        for, so for rows that trickle in AsyncClient is the better choice.

        timeout: seconds that the server may take for each row; default: the client's.
        stream_timeout: seconds for all of them.
        Raises TwinferError if the stream itself fails: rows without an outcome are unanswered, and safe to send again.
        """
        sent = Window(options, self._timeout if timeout is None else timeout, self._max_message_bytes)
        # gRPC takes requests on a thread of its own; the rows are made here, so that the caller's generator runs on the
        # caller's thread and its exceptions come out where they belong.
        outbox: queue.SimpleQueue[ensemble_service_pb2.InferStreamRequest | None] = queue.SimpleQueue()
        call = self._stub.InferStream(iter(outbox.get, None), timeout=stream_timeout)
        try:
            for row in rows:
                message = sent.add(row)
                if isinstance(message, Outcome):
                    yield message
                    continue
                outbox.put(message)
                if len(sent) >= window:
                    yield sent.outcome(next(call, None))
            outbox.put(None)
            for response in call:
                yield sent.outcome(response)
            sent.end()
        except grpc.RpcError as failure:
            raise error_from_call(failure) from None
        finally:
            outbox.put(None)
            call.cancel()

    def describe(self, *, timeout: float | None = None) -> ensemble_pb2.Ensemble:
        """Return the ensemble that is served: inputs, members, fusion, limits, plans. Raises TwinferError."""
        reply = self._call(self._stub.GetEnsemble, ensemble_service_pb2.GetEnsembleRequest(), timeout)
        return cast(ensemble_pb2.Ensemble, reply.ensemble)

    def wait_until_ready(self, timeout: float = channel.DEFAULT_TIMEOUT_SECONDS) -> None:
        """Return once the server says that it can answer: it is there, loaded and warm.

        Raises DeadlinePassed if that takes longer than `timeout` seconds, TwinferError if it can never be.
        """
        check: Any = self._channel.unary_unary(CHECK)  # bytes to bytes
        readiness = Readiness(timeout)
        while True:
            try:
                reply = check(readiness.request, timeout=readiness.remaining_seconds(), wait_for_ready=True)
            except grpc.RpcError as failure:
                readiness.failed(failure)
            else:
                if readiness.is_reached(reply):
                    return
            time.sleep(readiness.pause_seconds())

    def close(self) -> None:
        """Close the connection; calls under way end as Cancelled."""
        self._channel.close()

    def _call(self, method: Any, request: object, timeout: float | None) -> Any:
        """Make a unary call, never without a deadline."""
        try:
            return method(request, timeout=self._timeout if timeout is None else timeout)
        except grpc.RpcError as failure:
            raise error_from_call(failure) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

"""The client that blocks; `aio.py` has the same methods for an event loop."""

import queue
import time
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Any, ClassVar, Self, Unpack, cast

import grpc

from twinfer.channel import CHECK, DEFAULT_STREAM_SECONDS, DEFAULT_TIMEOUT_SECONDS, DEFAULT_WINDOW, Connection
from twinfer.health import PAUSE_SECONDS, REQUEST, Readiness
from twinfer.many import BatchRequest, Window
from twinfer.requests import Options, Request
from twinfer.results import Outcome, Response
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2


class Client(Connection):
    """Asks a twinfer server, and waits for its answers. Threads may share one.

    with Client("localhost:50051") as client:
        response = client.infer({"image": Path("five.png"), "text": "fve"})
        print(response.label, response.probability)
    """

    _transport: ClassVar = grpc

    def infer(self, inputs: Request, *, timeout: float | None = None, **options: Unpack[Options]) -> Response:
        """Return the fused answer to one request.

        inputs: values by input name (see `describe`), or a request from `make_request`.
        timeout: seconds until the answer must be here; default: the client's.
        Raises TwinferError; TypeError, ValueError or OSError for inputs that cannot be sent.
        """
        return Response.from_message(self._call(self._stub.Infer, self._request(inputs, options), timeout))

    def infer_batch(
        self, requests: Iterable[Request], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> list[Outcome]:  # fmt: skip
        """Return an outcome per request, in their order, of one call for all of them: the cheapest way to ask many at once.

        A request that fails is an outcome with an error. The call carries at most `describe().limits.max_batch_requests`, and
        no more bytes than any message; for more there is `infer_many`.

        timeout: seconds until the answers must be here; default: the client's.
        Raises TwinferError if the call itself fails; TypeError, ValueError or OSError for inputs that cannot be sent.
        """
        batch = BatchRequest(requests, options, self._max_message_bytes)
        return batch.outcomes(self._call(self._stub.BatchInfer, batch.message, timeout)) if batch else []

    def infer_many(
        self,
        requests: Iterable[Request],
        *,
        timeout: float | None = None,
        window: int = DEFAULT_WINDOW,
        stream_timeout: float = DEFAULT_STREAM_SECONDS,
        **options: Unpack[Options],
    ) -> Generator[Outcome, None, None]:
        """Yield an outcome per request over one RPC stream, each as soon as it is there, in any order.

        A request that fails is an outcome with an error, and the stream lives on. The requests may come from a generator: at
        most `window` of them are taken and not yet yielded. The window is filled before the first outcome is waited
        for, so for requests that trickle in AsyncClient is the better choice.

        timeout: seconds that the server may take for each request; default: the client's.
        stream_timeout: seconds for all of them.
        Raises TwinferError if the stream itself fails: requests without an outcome are unanswered, and safe to send again.
        """
        sent = Window(options, self._seconds(timeout), self._max_message_bytes)
        # gRPC takes requests on a thread of its own; they are made here, so that the caller's generator runs on the
        # caller's thread and its exceptions come out where they belong.
        outbox: queue.SimpleQueue[ensemble_service_pb2.InferStreamRequest | None] = queue.SimpleQueue()
        call = self._stub.InferStream(iter(outbox.get, None), timeout=stream_timeout, metadata=self._metadata)
        try:
            for request in requests:
                message = sent.add(request)
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
            raise self._error(failure) from None
        finally:
            outbox.put(None)
            call.cancel()

    def describe(self, *, timeout: float | None = None) -> ensemble_pb2.Ensemble:
        """Return the ensemble that is served: inputs, members, fusion, limits, execution. Raises TwinferError."""
        reply = self._call(self._stub.GetEnsemble, ensemble_service_pb2.GetEnsembleRequest(), timeout)
        return cast(ensemble_pb2.Ensemble, reply.ensemble)

    def wait_until_ready(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Return once the server says that it can answer: it is there, loaded and warm.

        Raises DeadlinePassed if that takes longer than `timeout` seconds, TwinferError if it can never be.
        """
        check = self._channel.unary_unary(CHECK)  # bytes to bytes
        readiness = Readiness(timeout, self._proxy)
        while True:
            try:
                if readiness.is_reached(check(REQUEST, timeout=readiness.remaining_seconds())):
                    return
            except grpc.RpcError as failure:
                readiness.failed(failure)
            time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        """Close the connection; calls under way end as Cancelled."""
        self._channel.close()

    def _call(self, method: Any, request: object, timeout: float | None) -> Any:
        """Return the reply of a unary call. Raises TwinferError."""
        try:
            return method(request, timeout=self._seconds(timeout), metadata=self._metadata)
        except grpc.RpcError as failure:
            raise self._error(failure) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

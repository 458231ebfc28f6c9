"""EnsembleService: requests in, responses out, one by one, many together or over an RPC stream."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import grpc

from twinfer.v1 import ensemble_service_pb2 as pb

from ..engine import Engine
from ..errors import InvalidOption, Loading, TwinferError
from ..settings import ServerSettings
from ..types import InferRequest, Response
from .boundary import Arrival, Context, describe_error, find_arrival, find_caller, note_span_error, parse, unary
from .codec import MAX_REQUEST_ID_BYTES, read_request, write_error
from .describe import describe
from .responses import ResponseWriter
from .streams import Streams

SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleService"].full_name
RESPONSES_AT_A_TIME = 16
"""So many responses of a call are written before the event loop sees to other calls."""


class EnsembleService:
    """Translates between the contract and an engine, which comes when it has loaded."""

    def __init__(self, pool: Executor, settings: ServerSettings) -> None:
        """`pool` parses large messages."""
        self._pool = pool
        self._settings = settings
        self._served: tuple[Engine, ResponseWriter] | None = None
        self._streams = Streams(self._answer_message, settings.max_stream_requests, is_in_order=False)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the service's handlers, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Infer": unary(pb.InferRequest, self._infer, self._pool, self.note_failure),
                "BatchInfer": unary(pb.BatchInferRequest, self._batch_infer, self._pool, self.note_failure),
                "GetEnsemble": unary(pb.GetEnsembleRequest, self._get_ensemble, self._pool),
                "InferStream": grpc.stream_stream_rpc_method_handler(self._streams.handle),
            },
        )

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        self._served = engine, ResponseWriter(engine.ensemble)

    async def drain(self) -> None:
        """Read nothing more from open RPC streams, and return when their requests are answered and they have ended."""
        await self._streams.drain()

    def note_failure(self, error: TwinferError) -> None:
        """Tell the engine, if there is one by now, of a call or a request that ends with an error."""
        if self._served is not None:
            self._served[0].note_failure(error, find_caller())

    def _ready(self) -> tuple[Engine, ResponseWriter]:
        if self._served is None:
            raise Loading("the ensemble is loading")
        return self._served

    async def _get_ensemble(self, message: pb.GetEnsembleRequest, size_bytes: int, context: Context) -> pb.GetEnsembleResponse:
        engine, _ = self._ready()
        engine.check_served(message.ensemble, message.version)
        ensemble = describe(engine.ensemble, self._settings, engine.breakers)
        return pb.GetEnsembleResponse(ensemble=ensemble)

    async def _infer(self, message: pb.InferRequest, size_bytes: int, context: Context) -> pb.InferResponse:
        reply = pb.InferResponse()
        [error] = await self._answer([message], [reply], size_bytes, find_arrival(context))
        if error is not None:
            raise error
        return reply

    async def _batch_infer(self, message: pb.BatchInferRequest, size_bytes: int, context: Context) -> pb.BatchInferResponse:
        engine, _ = self._ready()
        engine.check_served(message.ensemble, message.version)
        count, most = len(message.requests), self._settings.batch_requests
        if not 1 <= count <= most:
            raise InvalidOption(f"requests: found {count}; allowed: 1 to {most}")
        reply = pb.BatchInferResponse()
        responses = [reply.results.add().response for _ in range(count)]
        errors = await self._answer(message.requests, responses, size_bytes, find_arrival(context))
        for result, error in zip(reply.results, errors, strict=True):
            if error is not None:
                self.note_failure(error)
                result.error.CopyFrom(write_error(error))
        return reply

    async def _answer_message(self, data: bytes, context: Context) -> bytes:
        """Answer one message of an RPC stream."""
        request_id = ""
        try:
            message = await parse(pb.InferStreamRequest, data, self._pool)
            # An id that is too long is refused, and not sent back whole: the caller might be unable to receive it.
            request_id = message.request.request_id[:MAX_REQUEST_ID_BYTES]
            reply = pb.InferStreamResponse(request_id=request_id)
            [error] = await self._answer([message.request], [reply.response], len(data), find_arrival(context))
            if error is not None:
                raise error
        except Exception as error:
            known = describe_error(error)
            note_span_error(known)
            self.note_failure(known)
            reply = pb.InferStreamResponse(request_id=request_id, error=write_error(known))
        return reply.SerializeToString()

    async def _answer(
        self, messages: Sequence[pb.InferRequest], replies: Sequence[pb.InferResponse], size_bytes: int, arrival: Arrival
    ) -> list[TwinferError | None]:  # fmt: skip
        """Answer requests that came together, each in its reply or, where that stays empty, with the error that is returned.

        Raises TwinferError where none of them can be admitted.
        """
        engine, writer = self._ready()
        requests = [_read(message, arrival) for message in messages]
        readable = [request for request in requests if isinstance(request, InferRequest)]
        outcomes = iter(await engine.infer_batch(readable, size_bytes) if readable else ())
        errors: list[TwinferError | None] = []
        for reply, request in zip(replies, requests, strict=True):
            if len(errors) % RESPONSES_AT_A_TIME == RESPONSES_AT_A_TIME - 1:
                await asyncio.sleep(0)
            outcome = next(outcomes) if isinstance(request, InferRequest) else request
            if isinstance(request, InferRequest) and isinstance(outcome, Response):
                began = time.monotonic()
                writer.write(reply, outcome, request)
                engine.note_reply(request, outcome, began)
            errors.append(outcome if isinstance(outcome, TwinferError) else None)
        return errors


def _read(message: pb.InferRequest, arrival: Arrival) -> InferRequest | TwinferError:
    """Read one request of several, which fails alone."""
    try:
        return read_request(message, *arrival)
    except Exception as error:
        return describe_error(error)

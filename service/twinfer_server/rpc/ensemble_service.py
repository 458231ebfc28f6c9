"""EnsembleService: rows in, answers out, one by one, many together or over a stream."""

import asyncio
import time
from concurrent.futures import Executor

import grpc
from google.protobuf.message import Message

from twinfer.v1 import ensemble_service_pb2 as pb

from ..engine import Engine
from ..errors import InvalidOption, Loading, TwinferError
from ..types import InferRequest, Response
from .answer_writer import AnswerWriter
from .boundary import Context, describe_error, find_arrival, parse, unary
from .codec import MAX_REQUEST_ID_BYTES, read_request, write_error
from .describing import write_description
from .received import ReceivedRequest
from .streams import Streams

SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleService"].full_name
RESULTS_AT_A_TIME = 16
"""So many results of a batch are written before the event loop sees to others."""


class EnsembleService:
    """Translates between the contract and an engine, which comes when it has loaded."""

    def __init__(self, pool: Executor, max_stream_requests: int, max_batch_requests: int) -> None:
        """`pool` parses large messages; a stream may have `max_stream_requests` in hand, a batch `max_batch_requests`."""
        self.engine: Engine | None = None
        self._pool = pool
        self._max_batch_rows = max_batch_requests
        self._streams = Streams(self._answer_row, max_stream_requests, is_in_order=False)
        self._writer = AnswerWriter()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Give the service's handlers, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Infer": unary(ReceivedRequest, self._infer, self._pool, self.note_failure),
                "BatchInfer": unary(pb.BatchInferRequest, self._batch_infer, self._pool, self.note_failure),
                "GetEnsemble": unary(pb.GetEnsembleRequest, self._get_ensemble, self._pool),
                "InferStream": grpc.stream_stream_rpc_method_handler(self._streams.handle),
            },
        )

    async def drain(self) -> None:
        """Read nothing more from open streams, and return when their rows are answered and they have ended."""
        await self._streams.drain()

    def note_failure(self, error: TwinferError) -> None:
        """Tell the engine, if there is one by now, of a call or a row that ends with an error."""
        if self.engine is not None:
            self.engine.note_failure(error)

    def _ready_engine(self) -> Engine:
        if self.engine is None:
            raise Loading("the ensemble is loading")
        return self.engine

    async def _get_ensemble(self, message: pb.GetEnsembleRequest, size_bytes: int, context: Context) -> Message:
        engine = self._ready_engine()
        engine.check_served(message.ensemble, message.version)
        return pb.GetEnsembleResponse(ensemble=write_description(engine.description))

    async def _infer(self, received: ReceivedRequest, size_bytes: int, context: Context) -> pb.InferResponse:
        reply = pb.InferResponse()
        await self._answer(received, size_bytes, context, reply)
        return reply

    async def _answer(self, received: ReceivedRequest, size_bytes: int, context: Context, reply: pb.InferResponse) -> None:
        """Answer one row, and write that into `reply`."""
        engine = self._ready_engine()
        request = read_request(received.message, *find_arrival(context), received.large)
        answer = await engine.infer(request, size_bytes)
        began = time.monotonic()
        self._writer.write(reply, answer, request, engine.description)
        engine.note_reply(request, answer, began)

    async def _batch_infer(self, message: pb.BatchInferRequest, size_bytes: int, context: Context) -> pb.BatchInferResponse:
        engine = self._ready_engine()
        engine.check_served(message.ensemble, message.version)
        count = len(message.requests)
        if not 1 <= count <= self._max_batch_rows:
            raise InvalidOption(f"requests: found {count} rows; allowed: 1 to {self._max_batch_rows}")
        arrival = find_arrival(context)
        rows = [_read_row(row, *arrival) for row in message.requests]
        readable = [row for row in rows if isinstance(row, InferRequest)]
        answers = iter(await engine.infer_batch(readable, size_bytes) if readable else ())
        reply = pb.BatchInferResponse()
        for row in rows:
            if len(reply.results) % RESULTS_AT_A_TIME == RESULTS_AT_A_TIME - 1:
                await asyncio.sleep(0)  # else a large batch would hold up everybody
            result = reply.results.add()
            answer = next(answers) if isinstance(row, InferRequest) else row
            if isinstance(row, InferRequest) and isinstance(answer, Response):
                began = time.monotonic()
                self._writer.write(result.response, answer, row, engine.description)
                engine.note_reply(row, answer, began)
            elif isinstance(answer, TwinferError):
                self.note_failure(answer)
                result.error.CopyFrom(write_error(answer))
        return reply

    async def _answer_row(self, data: bytes, context: Context) -> bytes:
        """Answer one row of a stream."""
        request_id = ""
        try:
            message = await parse(pb.InferStreamRequest, data, self._pool)
            # An id that is too long is refused, and not sent back whole: the caller might be unable to receive it.
            request_id = message.request.request_id[:MAX_REQUEST_ID_BYTES]
            reply = pb.InferStreamResponse(request_id=request_id)
            await self._answer(ReceivedRequest(message.request), len(data), context, reply.response)
        except Exception as error:
            known = describe_error(error)
            self.note_failure(known)
            reply = pb.InferStreamResponse(request_id=request_id, error=write_error(known))
        return reply.SerializeToString()


def _read_row(message: pb.InferRequest, arrived_at: float, deadline: float | None, traceparent: str) -> InferRequest | TwinferError:
    """Read a row of many, which fails alone."""
    try:
        return read_request(message, arrived_at, deadline, traceparent)
    except Exception as error:
        return describe_error(error)

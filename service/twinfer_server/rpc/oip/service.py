"""GRPCInferenceService: the Open Inference Protocol, translated for the same engine."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from ...engine import Engine
from ...errors import Loading, TwinferError, Unsupported
from ...settings import ServerSettings
from ...types import InferRequest, Response
from ..boundary import SMALL_MESSAGE_BYTES, Arrival, Context, describe_error, find_arrival, parse, summarize, unary
from ..codec import MAX_REQUEST_ID_BYTES
from ..describe import describe
from ..streams import Streams
from . import grpc_service_pb2 as pb
from .adapter import adapt
from .describing import write_config, write_metadata
from .memory import REFUSED, Methods, memory_methods
from .models import Catalog, Model
from .reading import find_sources, read_call, read_rows
from .regions import Place, Regions
from .server_facts import facts_methods
from .statistics import Statistics
from .writing import write_response

_CONTRACT = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFERENCE_SERVICE = _CONTRACT.full_name
FINAL = "triton_final_response"

T = TypeVar("T")


class InferenceService:
    """Translates between the protocol and an engine, which comes when it has loaded."""

    def __init__(self, pool: Executor, settings: ServerSettings) -> None:
        """`pool` parses and reads large messages."""
        self._engine: Engine | None = None
        self._catalog: Catalog | None = None
        self._pool = pool
        self._settings = settings
        self._regions = Regions(False)
        self._statistics = Statistics()
        self._streams = Streams(self._respond, settings.max_stream_requests, is_in_order=True)
        self._is_draining = False
        self._is_serving = False
        self._switches: Mapping[str, bool] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """Give the service's handlers, for raw bytes."""
        at_once: Methods = {
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            **facts_methods(self._settings),
            **memory_methods(self._regions),
            **REFUSED,
        }
        return grpc.method_handlers_generic_handler(
            INFERENCE_SERVICE,
            {
                "ModelInfer": unary(pb.ModelInferRequest, self._model_infer, self._pool, self._note_failure),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._streams.handle),
                **{name: self._answering_at_once(name, method) for name, method in at_once.items()},
            },
        )

    def _answering_at_once(self, name: str, method: Callable[[Any], Message]) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer(message: Message, size_bytes: int, context: Context) -> Message:
            return method(message)

        return unary(getattr(pb, _CONTRACT.methods_by_name[name].input_type.name), answer, self._pool)

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        self._catalog = Catalog(adapt(describe(engine.ensemble, self._settings)))
        self._engine = engine

    def report(self, is_serving: bool, switches: Mapping[str, bool]) -> None:
        """Note whether the server answers rows, and how each member is switched, by name."""
        self._is_serving, self._switches = is_serving, switches

    async def drain(self) -> None:
        """Be ready no more, and return when open streams have ended."""
        self._is_draining = True
        await self._streams.drain()

    # --- what is served -----------------------------------------------------------------------------------------------

    def _ready(self) -> tuple[Engine, Catalog]:
        if self._engine is None or self._catalog is None:
            raise Loading("the ensemble is loading")
        return self._engine, self._catalog

    def _is_ready(self, model: Model) -> bool:
        if not self._is_serving or self._is_draining or self._engine is None:
            return False
        return model.member < 0 or self._switches.get(self._engine.ensemble.members[model.member].name, False)

    def _server_ready(self, message: pb.ServerReadyRequest) -> Message:
        return pb.ServerReadyResponse(ready=self._is_serving and not self._is_draining)

    def _model_ready(self, message: pb.ModelReadyRequest) -> Message:
        if self._catalog is None:  # which models there are is not known yet
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready(self._catalog.find(message.name, message.version)))

    def _model_metadata(self, message: pb.ModelMetadataRequest) -> Message:
        return write_metadata(self._ready()[1].find(message.name, message.version))

    def _model_config(self, message: pb.ModelConfigRequest) -> Message:
        return pb.ModelConfigResponse(config=write_config(self._ready()[1].find(message.name, message.version)))

    def _model_statistics(self, message: pb.ModelStatisticsRequest) -> Message:
        catalog = self._ready()[1]
        models = [catalog.find(message.name, message.version)] if message.name else catalog.models.values()
        return self._statistics.write(models)

    def _repository_index(self, message: pb.RepositoryIndexRequest) -> Message:
        response = pb.RepositoryIndexResponse()
        for model in self._catalog.models.values() if self._catalog else ():
            if self._is_ready(model):
                response.models.add(name=model.name, version=model.version, state="READY")
            elif not message.ready:
                reason = "it is switched off, or the server does not answer rows now"
                response.models.add(name=model.name, version=model.version, state="UNAVAILABLE", reason=reason)
        return response

    # --- answers ------------------------------------------------------------------------------------------------------

    def _note_failure(self, error: TwinferError) -> None:
        if self._engine is not None:
            self._engine.note_failure(error)

    async def _model_infer(self, message: pb.ModelInferRequest, size_bytes: int, context: Context) -> pb.ModelInferResponse:
        arrival = find_arrival(context)
        engine, catalog = self._ready()
        model = catalog.find(message.model_name, message.model_version)
        try:
            response = await self._answer(engine, catalog, model, message, size_bytes, arrival)
        except Exception:
            self._statistics.note_failure(model, time.monotonic() - arrival.at)
            raise
        return response

    async def _answer(
        self, engine: Engine, catalog: Catalog, model: Model, message: pb.ModelInferRequest, size_bytes: int, arrival: Arrival
    ) -> pb.ModelInferResponse:  # fmt: skip
        if model.refusal:
            raise Unsupported(f"model {model.name!r} cannot be asked: {model.refusal}; allowed: {catalog.ensemble.name!r}")
        call = read_call(message, model, self._regions, arrival)
        sources = find_sources(message, model, self._regions, self._settings.max_message_bytes)
        size_bytes += sum(source.raw.byte_size for source in sources if isinstance(source.raw, Place))
        requests = await self._on_pool(size_bytes, lambda: read_rows(call, sources))
        answers = await _infer(engine, requests, size_bytes, model.member)
        began = time.monotonic()
        response = write_response(call, answers, engine.ensemble.labels)
        for request, answer in zip(requests, answers, strict=True):
            engine.note_reply(request, answer, began)
        now = time.monotonic()
        parts = [catalog.models[step.model] for step in model.steps]
        self._statistics.note_answers(model, parts, answers, now - began, now - arrival.at)
        return response

    async def _on_pool(self, size_bytes: int, work: Callable[[], T]) -> T:
        """Do work on many bytes where it does not hold up the others."""
        if size_bytes <= SMALL_MESSAGE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _respond(self, data: bytes, context: Context) -> bytes:
        """Answer one message of a stream."""
        response = pb.ModelStreamInferResponse()
        request_id = ""
        try:
            message = await parse(pb.ModelInferRequest, data, self._pool)
            request_id = message.id[:MAX_REQUEST_ID_BYTES]
            response.infer_response.CopyFrom(await self._model_infer(message, len(data), context))
        except Exception as error:
            known = describe_error(error)
            self._note_failure(known)
            response.error_message = f"[{known.code.name}] {summarize(known)}"
            response.infer_response.id = request_id
        response.infer_response.parameters[FINAL].bool_param = True
        return response.SerializeToString()


async def _infer(engine: Engine, requests: Sequence[InferRequest], size_bytes: int, member: int) -> list[Response]:
    """Answer rows together; raises the error of the first that failed, with its number where there are several.

    Of a `member` (-1: all of them) asked by itself, its own failure fails the row.
    """
    if len(requests) == 1:
        found: Sequence[Response | TwinferError] = [await engine.infer(requests[0], size_bytes)]
    else:
        found = await engine.infer_batch(requests, size_bytes)
    errors = {number: error for number, answer in enumerate(found) if (error := _find_error(answer, member)) is not None}
    for number in sorted(errors)[1:]:
        engine.note_failure(errors[number])  # the first is noted with the call
    for number, error in errors.items():
        raise error.within(f"row {number}: ") if len(found) > 1 else error
    return cast(list[Response], found)


def _find_error(answer: Response | TwinferError, member: int) -> TwinferError | None:
    if isinstance(answer, TwinferError):
        return answer
    return answer.members[member].error if member >= 0 else None

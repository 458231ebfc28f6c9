"""GRPCInferenceService: the Open Inference Protocol, translated for the same engine."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from importlib.metadata import version
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from ...engine import Engine
from ...errors import Loading, TwinferError, Unsupported
from ...settings import ServerSettings
from ...types import InferRequest, Response
from ..boundary import (
    SMALL_MESSAGE_BYTES,
    Context,
    describe_error,
    fail,
    find_arrival,
    find_caller,
    note_span_error,
    parse,
    summarize,
    unary,
)  # fmt: skip
from ..codec import MAX_REQUEST_ID_BYTES
from ..describe import describe
from ..streams import Streams
from . import grpc_service_pb2 as pb
from .codec import read_outputs, read_requests, write_response
from .models import Model, find_model, list_models, write_config, write_metadata

_CONTRACT = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFERENCE_SERVICE = _CONTRACT.full_name
EXTENSIONS = ("model_configuration", "model_repository", "parameters", "schedule_policy")
"""Those of Triton's that clients may count on; load generators ask for statistics only where they are among them."""
FINAL = "triton_final_response"

_MEMORY = "memory is not shared with clients; allowed: tensors in the messages"
_REPOSITORY = "models cannot be loaded or unloaded; allowed: the ensemble that the server was started with"
_SETTINGS = "settings are not told or changed here; allowed: those that the operator starts the server with"
UNSUPPORTED: Mapping[str, str] = {
    "ModelStatistics": "no statistics are kept by model; allowed: the metrics that the server has for Prometheus",
    "RepositoryModelLoad": _REPOSITORY,
    "RepositoryModelUnload": _REPOSITORY,
    **{f"{kind}SharedMemory{act}": _MEMORY for kind in ("System", "Cuda") for act in ("Status", "Register", "Unregister")},
    "TraceSetting": _SETTINGS,
    "LogSettings": _SETTINGS,
}
"""The methods of Triton's that the contract leaves out, each with what its callers are told."""


class InferenceService:
    """Translates between the protocol and an engine, which comes when it has loaded."""

    def __init__(self, pool: Executor, settings: ServerSettings) -> None:
        """`pool` parses and reads large messages."""
        self._engine: Engine | None = None
        self._models: Mapping[str, Model] = {}
        self._members: Sequence[str] = ()
        self._pool = pool
        self._streams = Streams(self._respond, settings.max_stream_requests, is_in_order=True)
        self._is_draining = False
        self._is_serving = False
        self._are_on: Mapping[str, bool] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the service's handlers, for raw bytes."""
        at_once: dict[str, Callable[[Any], Message]] = {
            "ServerLive": lambda message: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda message: pb.ServerReadyResponse(ready=self._is_ready()),
            "ServerMetadata": _describe_server,
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda message: write_metadata(self._find_model(message)),
            "ModelConfig": lambda message: pb.ModelConfigResponse(config=write_config(self._find_model(message))),
            "RepositoryIndex": self._repository_index,
        }
        return grpc.method_handlers_generic_handler(
            INFERENCE_SERVICE,
            {
                "ModelInfer": unary(pb.ModelInferRequest, self._model_infer, self._pool, self._note_failure),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._streams.handle),
                **{name: self._answering_at_once(name, method) for name, method in at_once.items()},
                **{name: _refusing(text) for name, text in UNSUPPORTED.items()},
            },
        )

    def _answering_at_once(self, name: str, method: Callable[[Any], Message]) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer(message: Message, size_bytes: int, context: Context) -> Message:
            return method(message)

        return unary(getattr(pb, _CONTRACT.methods_by_name[name].input_type.name), answer, self._pool)

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        ensemble = describe(engine.ensemble, engine.settings)
        self._members = [member.name for member in ensemble.members]
        self._models = list_models(ensemble)
        self._engine = engine

    def report(self, is_serving: bool, members: Mapping[str, bool]) -> None:
        """Note whether the server answers requests, and whether each member takes part, by name."""
        self._is_serving, self._are_on = is_serving, members

    async def drain(self) -> None:
        """Be ready no more, and return when open RPC streams have ended."""
        self._is_draining = True
        await self._streams.drain()

    # --- what is served -----------------------------------------------------------------------------------------------

    def _ready_engine(self) -> Engine:
        if self._engine is None:
            raise Loading("the ensemble is loading")
        return self._engine

    def _find_model(self, message: Any) -> Model:
        self._ready_engine()
        return find_model(self._models, message.name, message.version)

    def _is_ready(self, model: Model | None = None) -> bool:
        is_on = model is None or model.member is None or self._are_on.get(self._members[model.member], False)
        return self._is_serving and not self._is_draining and is_on

    def _model_ready(self, message: pb.ModelReadyRequest) -> Message:
        if self._engine is None:  # which models there are is not known yet
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready(self._find_model(message)))

    def _repository_index(self, message: pb.RepositoryIndexRequest) -> Message:
        response = pb.RepositoryIndexResponse()
        for model in self._models.values():
            if self._is_ready(model):
                response.models.add(name=model.name, version=model.version, state="READY")
            elif not message.ready:
                reason = "it is off, or the server does not answer requests now"
                response.models.add(name=model.name, version=model.version, state="UNAVAILABLE", reason=reason)
        return response

    # --- inference ----------------------------------------------------------------------------------------------------

    def _note_failure(self, error: TwinferError) -> None:
        if self._engine is not None:
            self._engine.note_failure(error, find_caller())

    async def _model_infer(self, message: pb.ModelInferRequest, size_bytes: int, context: Context) -> pb.ModelInferResponse:
        arrival, engine = find_arrival(context), self._ready_engine()
        model = find_model(self._models, message.model_name, message.model_version)
        outputs = read_outputs(message, model)
        if size_bytes <= SMALL_MESSAGE_BYTES:
            requests = read_requests(message, model, outputs, arrival)
        else:  # would hold up the other calls
            loop = asyncio.get_running_loop()
            requests = await loop.run_in_executor(self._pool, read_requests, message, model, outputs, arrival)
        responses = await _infer_all(engine, requests, size_bytes, model.member)
        began = time.monotonic()
        reply = write_response(message, model, outputs, responses)
        for request, response in zip(requests, responses, strict=True):
            engine.note_reply(request, response, began)
        return reply

    async def _respond(self, data: bytes, context: Context) -> bytes:
        """Answer one message of an RPC stream."""
        reply = pb.ModelStreamInferResponse()
        request_id = ""
        try:
            message = await parse(pb.ModelInferRequest, data, self._pool)
            # An id that is too long is refused, and not sent back whole: the caller might be unable to receive it.
            request_id = message.id[:MAX_REQUEST_ID_BYTES]
            reply.infer_response.CopyFrom(await self._model_infer(message, len(data), context))
        except Exception as error:
            known = describe_error(error)
            note_span_error(known)
            self._note_failure(known)
            reply.error_message = f"[{known.code.name}] {summarize(known)}"
            reply.infer_response.id = request_id
        reply.infer_response.parameters[FINAL].bool_param = True
        return reply.SerializeToString()


def _describe_server(message: pb.ServerMetadataRequest) -> Message:
    return pb.ServerMetadataResponse(name="twinfer", version=version("twinfer"), extensions=EXTENSIONS)


def _refusing(text: str) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Make the handler of a method that is not here, whatever it is sent."""

    async def refuse(data: bytes, context: Context) -> bytes:
        await fail(context, Unsupported(text))

    return grpc.unary_unary_rpc_method_handler(refuse)


async def _infer_all(engine: Engine, requests: Sequence[InferRequest], size_bytes: int, member: int | None) -> list[Response]:
    """Compute requests together; raises the error of the first that failed, with its number where there are several.

    Of a `member` that is asked by itself, its own failure fails the request.
    """
    results = await engine.infer_batch(requests, size_bytes)
    errors = []
    for number, result in enumerate(results):
        error = result if isinstance(result, TwinferError) else None if member is None else result.members[member].error
        if error is not None:
            text = f"request {number}: {error.text}" if len(results) > 1 else error.text
            errors.append(type(error)(text, member=error.member, stage=error.stage))
    for error in errors[1:]:
        engine.note_failure(error, find_caller())  # the first is noted with the call
    if errors:
        raise errors[0]
    return cast(list[Response], results)

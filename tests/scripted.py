"""A server that answers as the test says, and a caller that drives either of the two Python clients."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from twinfer import AsyncClient, Client, Outcome, Response
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2_grpc, error_pb2
from twinfer.v1 import ensemble_service_pb2 as pb

Context = grpc.ServicerContext
Script = Callable[[pb.InferRequest, Context], pb.InferResponse]
Requests = Iterator[pb.InferRequest]
Replies = Iterator[pb.InferStreamResponse]
StreamScript = Callable[[Requests, Context], Replies]


def make_prediction(**chances: float) -> Any:
    """Make a prediction of classes."""
    index = {"five": 5, "six": 6}
    return {"classification": {"classes": [{"index": index[k], "label": k, "probability": p} for k, p in chances.items()]}}


ANSWER = pb.InferResponse(
    ensemble="digits",
    version=3,
    prediction=make_prediction(five=0.75, six=0.25),
    members=[
        {
            "name": "vision",
            "state": "MEMBER_STATE_OK",
            "weight": 1.0,
            "device_time": {"nanos": 1_500_000},
            "solo_latency": {"nanos": 1_250_000},
            "prediction": make_prediction(six=0.5),
        },
        {
            "name": "language",
            "state": "MEMBER_STATE_LATE",
            "error": {"code": 4, "reason": "REASON_MEMBER_LATE", "member": "language", "text": "the stream [was] stuck"},
        },
    ],
    degraded=True,
    disagreement=0.125,
    timings={
        "total": {"nanos": 2_000_000}, "buffer_wait": {"nanos": 500_000}, "batch_size": 4, "overlap_ratio": 1.5,
        "execution": "streams",
    },
    fusion_version=7,
)  # fmt: skip

ENSEMBLE: dict[str, Any] = {
    "name": "digits",
    "version": 3,
    "task": "TASK_CLASSIFICATION",
    "labels": ["zero", "one"],
    "inputs": [
        {"name": "image", "kind": "image", "dtype": "DATA_TYPE_FP32", "shape": [1, 8, 8], "members": ["vision"]},
        {"name": "text", "kind": "text", "dtype": "DATA_TYPE_INT64", "shape": [-1], "optional": True, "max_tokens": 32},
    ],
    "members": [
        {
            "name": "vision",
            "loader": "pt2",
            "precision": "fp32",
            "device": "cpu",
            "parameter_bytes": 2_660,
            "breaker_state": "BREAKER_STATE_DISABLED",
            "breaker_reason": "since 2031: an operator",
            "solo_latencies": [
                {"samples": 1, "latency": {"nanos": 250_000}},
                {"samples": 32, "tokens": 16, "latency": {"nanos": 1_600_000}},
            ],
        }
    ],
    "fusion": {"method": "log_opinion_pool", "version": 7, "weights": {"vision": 0.25, "language": 0.75}},
    "policy": "best_effort",
    "limits": {"max_message_bytes": 33_554_432, "default_timeout": {"seconds": 30}},
    "execution": "serial",
    "cascade": {"first": "vision", "gate": 0.75},
}


BAD = error_pb2.Error(code=3, reason="REASON_INVALID_INPUT", stage="STAGE_DECODE", text="inputs['text']: no")


def answer(request: pb.InferRequest, context: Context) -> pb.InferResponse:
    """Answer with ANSWER, but fail with BAD for the text "bad"."""
    if request.inputs["text"].text == "bad":
        context.set_trailing_metadata((("twinfer-error-bin", BAD.SerializeToString()),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, BAD.text)
    return ANSWER


def stream_answer(request_id: str) -> pb.InferStreamResponse:
    """Return ANSWER as that of one request of a stream."""
    answer = pb.InferStreamResponse(request_id=request_id, response=ANSWER)
    answer.response.request_id = request_id
    return answer


def answer_stream(requests: Requests, context: Context) -> Replies:
    """Answer every request of a stream at once."""
    yield from (stream_answer(request.request_id) for request in requests)


class ScriptedService(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """Answers as the test says, and remembers what it was asked."""

    def __init__(self, script: Script = answer, stream: StreamScript = answer_stream) -> None:
        self.script = script
        self.stream = stream
        self.requests: list[pb.InferRequest] = []
        self.seconds_left: list[float | None] = []
        self.address = ""

    def Infer(self, request: pb.InferRequest, context: Context) -> Any:
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        return self.script(request, context)

    def BatchInfer(self, request: pb.BatchInferRequest, context: Context) -> Any:
        self.seconds_left.append(context.time_remaining())
        self.requests.extend(request.requests)
        return pb.BatchInferResponse(
            results=[
                {"error": BAD} if one.inputs["text"].text == "bad" else {"response": self.script(one, context)}
                for one in request.requests
            ]
        )

    def InferStream(self, request_iterator: Iterator[pb.InferStreamRequest], context: Context) -> Replies:
        self.seconds_left.append(context.time_remaining())

        def remember() -> Requests:
            for message in request_iterator:
                self.requests.append(message.request)
                yield message.request

        return self.stream(remember(), context)

    def GetEnsemble(self, request: pb.GetEnsembleRequest, context: Context) -> Any:
        self.seconds_left.append(context.time_remaining())
        return pb.GetEnsembleResponse(ensemble=ensemble_pb2.Ensemble(**ENSEMBLE))


def failing(code: grpc.StatusCode, text: str, metadata: tuple[tuple[str, str | bytes], ...] = (), times: int = 1_000) -> Script:
    """Return a script that fails the first calls, then answers."""
    left = iter(range(times))

    def script(request: pb.InferRequest, context: Context) -> pb.InferResponse:
        if next(left, None) is not None:
            context.set_trailing_metadata(metadata)
            context.abort(code, text)
        return ANSWER

    return script


@contextmanager
def serving(
    service: ensemble_service_pb2_grpc.EnsembleServiceServicer,
    more: Callable[[grpc.Server], object] = lambda server: None,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """Serve on a free port, in the clear without credentials, and yield the address; `more` adds further services."""
    server = grpc.server(ThreadPoolExecutor(8))
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(service, server)
    more(server)
    listen = "127.0.0.1:0"
    port = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Caller:
    """Drives the blocking client or the async one with the same words, a fresh client for each call."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def call(self, method: str, address: str, *args: Any, client: Mapping[str, Any] | None = None, **named: Any) -> Any:
        settings = {"attempts": 1, **(client or {})}
        if self.kind == "blocking":
            with Client(address, **settings) as blocking:
                return getattr(blocking, method)(*args, **named)

        async def run() -> Any:
            async with AsyncClient(address, **settings) as waiting:
                return await getattr(waiting, method)(*args, **named)

        return asyncio.run(run())

    def infer(self, address: str, inputs: Any = None, **named: Any) -> Response:
        response: Response = self.call("infer", address, {"text": "fve"} if inputs is None else inputs, **named)
        return response

    def infer_many(
        self, address: str, requests: Iterable[Any], seen: list[Outcome] | None = None, client: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> list[Outcome]:  # fmt: skip
        """Return the outcomes; `seen` has those that came before a failure."""
        outcomes = [] if seen is None else seen
        settings = {"attempts": 1, **(client or {})}
        if self.kind == "blocking":
            with Client(address, **settings) as blocking:
                outcomes.extend(blocking.infer_many(requests, **named))
            return outcomes

        async def run() -> None:
            async with AsyncClient(address, **settings) as waiting:
                async for outcome in waiting.infer_many(requests, **named):
                    outcomes.append(outcome)

        asyncio.run(run())
        return outcomes

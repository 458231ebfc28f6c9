"""The Python client, blocking and async: its calls, against real servers that follow a script."""

import inspect
import socket
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import twinfer
from tests.calls import PATIENCE_SECONDS
from tests.scripted import ANSWER, Caller, Context, ScriptedService, failing, serving
from tests.without import without
from twinfer import AsyncClient, Attribution, Client, MemberState, Prediction, ScoredClass, Tensor, Timings, errors, make_request
from twinfer.v1 import ensemble_service_pb2 as pb


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: member for name, member in vars(kind).items() if not name.startswith("_")} | {"__init__": kind}
        return {name: list(inspect.signature(member).parameters) for name, member in public.items()}

    assert methods(Client) == methods(AsyncClient)


def test_importing_the_client_needs_nothing_but_grpcio_and_protobuf() -> None:
    absent = {"torch", "numpy", "typer", "click", "rich", "PIL", "pydantic", "grpc_health", "twinfer_server"}
    program = """
import twinfer
twinfer.make_request({"text": "fve", "image": b"png"})
try:
    twinfer.make_request({"text": 5})
except TypeError:
    print("fine")
"""
    done = without(absent, program=program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_response_reads_as_plain_values(caller: Caller, service: ScriptedService) -> None:
    response = caller.infer(service.address)
    assert (response.label, response.probability, response.ensemble, response.version) == ("five", 0.75, "digits", 3)
    assert (response.degraded, response.disagreement, response.fusion_version) == (True, 0.125, 7)
    assert response.timings == Timings(0.0, 0.0, 0.0, 2.0, 4, overlap_ratio=1.5, execution="streams", buffer_wait_ms=0.5)
    assert list(response.members) == ["vision", "language"]
    vision, language = response.members.values()
    assert (vision.state, vision.device_ms, vision.solo_ms, vision.error) == ("OK", 1.5, 1.25, None)
    assert (language.state, language.device_ms, language.solo_ms) == (MemberState.LATE, None, None)
    assert isinstance(language.error, errors.MemberLate)
    assert response.message == ANSWER


def test_an_explained_response_reads_as_plain_values() -> None:
    two, one = [{"index": 0, "probability": 0.5}, {"index": 1, "probability": 0.5}], [{"index": 1, "probability": 0.75}]
    explained = pb.InferResponse(
        prediction={"multi_label": {"labels": two}},
        members=[
            {"name": "vision", "prediction": {"tensor": {"dtype": "DATA_TYPE_FP32", "shape": [1, 2], "data": b"\0" * 8}}},
            {"name": "language", "attribution": {"delta": 0.25, "without": {"multi_label": {"labels": one}}}},
        ],
    )
    response = twinfer.Response.from_message(explained)
    assert [label.probability for label in response.prediction.labels] == [0.5, 0.5]
    vision, language = response.members.values()
    assert vision.prediction == Prediction(tensor=Tensor((1, 2), b"\0" * 8))
    assert vision.attribution is None
    assert language.attribution == Attribution(0.25, Prediction(labels=(ScoredClass(1, "", 0.75),)))


def test_what_the_server_leaves_out_is_none_and_a_state_that_only_a_newer_one_knows_is_unspecified() -> None:
    message = pb.InferResponse(prediction={"embedding": {"values": [1.0, 0.5]}}, members=[{"name": "vision", "state": 99}])
    response = twinfer.Response.from_message(message)
    assert response.embedding == (1.0, 0.5)
    assert (response.disagreement, response.timings.overlap_ratio, response.timings.total_ms) == (None, None, 0.0)
    assert response.members["vision"].state is MemberState.UNSPECIFIED
    with pytest.raises(LookupError, match="no classes"):
        _ = response.label


def test_describe_returns_the_ensemble(caller: Caller, service: ScriptedService) -> None:
    ensemble = caller.call("describe", service.address)
    assert (ensemble.name, list(ensemble.labels)) == ("digits", ["zero", "one"])
    assert (ensemble.fusion.version, ensemble.cascade.first, ensemble.execution) == (7, "vision", "serial")


def test_options_of_the_call_and_ready_requests_are_sent_as_they_are(caller: Caller, service: ScriptedService) -> None:
    ready = make_request({"text": "fve"}, request_id="r1", timeout=0.25)
    caller.infer(service.address, ready)
    caller.infer(service.address, {"text": "fve"}, request_id="r2", top_k=2)
    assert service.requests == [ready, make_request({"text": "fve"}, request_id="r2", top_k=2)]
    with pytest.raises(TypeError, match="found besides: top_k"):
        caller.infer(service.address, ready, top_k=2)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_every_call_has_a_deadline(caller: Caller) -> None:
    service = ScriptedService()

    def check_health(request: bytes, context: Context) -> bytes:
        service.seconds_left.append(context.time_remaining())
        return b"\x08\x01"

    def add_health(server: grpc.Server) -> None:
        method: Any = grpc.unary_unary_rpc_method_handler(check_health)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method})])

    with serving(service, add_health) as address:
        caller.infer(address)
        caller.infer(address, timeout=5)
        caller.infer(address, client={"timeout": 7})
        caller.call("describe", address)
        caller.infer_many(address, [{"text": "fve"}])
        caller.infer_many(address, [{"text": "fve"}], stream_timeout=9)
        caller.call("infer_batch", address, [{"text": "fve"}])
        caller.call("infer_batch", address, [{"text": "fve"}], timeout=8)
        caller.call("wait_until_ready", address, 11)
    allowed = [30, 5, 7, 30, 3600, 9, 30, 8, 11]
    assert len(service.seconds_left) == len(allowed)
    for left, most in zip(service.seconds_left, allowed, strict=True):
        assert left is not None
        assert most - 3 < left <= most * 1.01  # gRPC sends three digits and rounds up


def test_a_call_past_its_deadline_says_so(caller: Caller, service: ScriptedService) -> None:
    gate = threading.Event()

    def wait(request: pb.InferRequest, context: Context) -> pb.InferResponse:
        gate.wait(PATIENCE_SECONDS)
        return ANSWER

    service.script = wait
    with pytest.raises(errors.DeadlinePassed) as caught:
        caller.infer(service.address, timeout=0.1)
    gate.set()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_connection_that_takes_its_time_is_waited_for(caller: Caller) -> None:
    # Connected, and then nothing: what a busy server or a far one looks like until it has said its first word.
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(errors.DeadlinePassed):
        caller.infer(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)


def test_channel_options_of_the_caller_win(caller: Caller, service: ScriptedService) -> None:
    with pytest.raises(errors.Overloaded, match="larger than max"):
        caller.infer(service.address, client={"options": [("grpc.max_receive_message_length", 10)]})


# --- retries and sizes ------------------------------------------------------------------------------------------------

OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", (("grpc-retry-pushback-ms", "5"),))


def test_a_large_request_is_sent_again_after_the_pushback(caller: Caller, service: ScriptedService) -> None:
    service.script = failing(*OVERLOADED, times=1)
    response = caller.infer(service.address, {"image": bytes(2**20)}, client={"attempts": 4})
    assert response.label == "five"
    assert [len(request.inputs["image"].image) for request in service.requests] == [2**20, 2**20]


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_are_bounded_and_the_hint_is_handed_on(caller: Caller, service: ScriptedService, attempts: int) -> None:
    service.script = failing(*OVERLOADED)
    with pytest.raises(errors.Overloaded) as caught:
        caller.infer(service.address, client={"attempts": attempts})
    assert len(service.requests) == attempts
    assert caught.value.retry_after_seconds == 0.005


def test_what_is_the_callers_fault_is_not_tried_again_and_over_the_limit_never_sent(
    caller: Caller, service: ScriptedService
) -> None:
    with pytest.raises(errors.InvalidRequest):
        caller.infer(service.address, {"text": "bad"}, client={"attempts": 4})
    assert len(service.requests) == 1
    with pytest.raises(errors.MessageTooLarge, match=r"has 33,554,4\d\d bytes; allowed: 33,554,432 \(max_message_bytes"):
        caller.infer(service.address, {"image": bytes(32 * 2**20)})
    assert len(service.requests) == 1


def test_an_answer_far_over_the_usual_4_mib_is_received(caller: Caller, service: ScriptedService) -> None:
    service.script = lambda request, context: pb.InferResponse(prediction={"embedding": {"values": [0.0] * 2**21}})
    assert len(caller.infer(service.address, client={"max_message_bytes": 9 * 2**20}).embedding) == 2**21


# --- readiness --------------------------------------------------------------------------------------------------------


class ChangingHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Gives the scripted answers, the last of them for ever."""

    def __init__(self, *script: int | grpc.StatusCode) -> None:
        self.script = list(script)
        self.services: list[str] = []

    def Check(self, request: Any, context: Context) -> Any:
        self.services.append(request.service)
        status = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(status, grpc.StatusCode):
            context.abort(status, "scripted")
        return health_pb2.HealthCheckResponse(status=status)


def with_health(servicer: Any) -> Callable[[grpc.Server], object]:
    return lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_server_that_is_not_ready_yet_is_asked_again(caller: Caller) -> None:
    servicer = ChangingHealth(grpc.StatusCode.NOT_FOUND, NOT_SERVING, grpc.StatusCode.UNAVAILABLE, SERVING)
    with serving(ScriptedService(), with_health(servicer)) as address:
        caller.call("wait_until_ready", address, PATIENCE_SECONDS)
    assert servicer.services == ["twinfer.v1.EnsembleService"] * 4


def test_a_server_that_never_is_ready_or_not_there_ends_the_wait(caller: Caller, refused_address: str) -> None:
    with serving(ScriptedService(), with_health(ChangingHealth(NOT_SERVING))) as address:
        for asked, said in ((address, "it says that it is not serving"), (refused_address, "no server answered")):
            with pytest.raises(errors.DeadlinePassed, match=rf"not ready after 0\.2 s: {said}"):
                caller.call("wait_until_ready", asked, 0.2)


def test_a_server_without_a_health_service_is_not_waited_for(caller: Caller, service: ScriptedService) -> None:
    with pytest.raises(errors.TwinferError) as caught:
        caller.call("wait_until_ready", service.address, PATIENCE_SECONDS)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED

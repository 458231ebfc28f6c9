"""Health, reflection and the operators' listener, as load balancers, grpcurl and their like see them."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.calls import (
    GET_ENSEMBLE,
    INFER,
    PATIENCE_SECONDS,
    Failure,
    begin,
    call,
    connect,
    failure_of,
    infer,
    read_failure,
    stream,
)
from tests.conftest import DigitsServer
from tests.gated import HELD, Gate, make_gated, write_gated
from tests.servers import RunningServer, running
from twinfer.v1 import ensemble_service_pb2 as pb

SERVICE = "twinfer.v1.EnsembleService"
INFERENCE_SERVICE = "inference.GRPCInferenceService"
ADMIN_SERVICE = "twinfer.v1.EnsembleAdminService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def check(channel: grpc.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    status: int = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_SECONDS).status
    return status


def watch(channel: grpc.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS)


@contextmanager
def in_the_background(folder: Path, **settings: Any) -> Iterator[tuple[str, threading.Event]]:
    """Serve `folder` on a thread of its own; give the address as soon as it listens, and an event that it is ready."""
    address, ready, done = [""], threading.Event(), threading.Event()
    listening = threading.Event()

    def on_listening(found: str) -> None:
        address[0] = found
        listening.set()

    def run() -> None:
        with running(folder, on_listening=on_listening, **settings):
            ready.set()
            done.wait()

    thread = threading.Thread(target=run)
    thread.start()
    listening.wait()
    try:
        yield address[0], ready
    finally:
        done.set()
        thread.join()


def test_until_the_members_are_warm_nothing_is_served_and_everybody_is_told(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    gate = Gate(folder, "load")
    with in_the_background(folder, trust_code=True) as (address, ready), connect(address) as channel:
        try:
            gate.wait_until_reached()
            watches = {service: watch(channel, service) for service in ("", SERVICE)}
            assert [check(channel, service) for service in ("", SERVICE)] == [NOT_SERVING, NOT_SERVING]
            assert [next(statuses).status for statuses in watches.values()] == [NOT_SERVING, NOT_SERVING]
            for method, message in ((INFER, make_gated().SerializeToString()), (GET_ENSEMBLE, b"")):
                found = call(channel, method, message)
                assert isinstance(found, Failure)
                assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "LOADING")
            message = pb.InferStreamRequest(request=make_gated(0, "1")).SerializeToString()
            (reply,) = (pb.InferStreamResponse.FromString(reply) for reply in stream(channel, [message]))
            assert (reply.request_id, reply.error.code) == ("1", grpc.StatusCode.UNAVAILABLE.value[0])
        finally:
            gate.open()
        assert [next(statuses).status for statuses in watches.values()] == [SERVING, SERVING]
        assert [check(channel, service) for service in ("", SERVICE)] == [SERVING, SERVING]
        ready.wait()
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListRequest"), reason="this grpcio-health-checking has no List yet")
def test_all_services_are_listed_with_their_status(tmp_path: Path) -> None:
    with running(write_gated(tmp_path / "gated"), trust_code=True) as server, connect(server.address) as channel:
        listed = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest()).statuses
        assert {"", SERVICE, INFERENCE_SERVICE} <= listed.keys()
        assert {found.status for found in listed.values()} == {SERVING}


def test_a_drain_is_reported_at_once_and_ends_every_watch(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    gate = Gate(folder)
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        try:
            watches = [watch(channel, service) for service in ("", SERVICE, "nobody")]
            assert [next(statuses).status for statuses in watches] == [SERVING, SERVING, UNKNOWN]
            held = begin(channel, INFER, make_gated(HELD).SerializeToString())
            gate.wait_until_reached()
            server.stop.set()
            assert [[status.status for status in statuses] for statuses in watches] == [[NOT_SERVING], [NOT_SERVING], []]
            # The server says goodbye a little later; who comes then finds nothing.
            assert failure_of(lambda: all(check(channel) == NOT_SERVING for _ in itertools.count())).code is UNAVAILABLE
        finally:
            gate.open()
        assert pb.InferResponse.FromString(held.result()).prediction.classification.classes[0].label == "c"


def test_a_lane_that_stands_still_for_long_is_reported_until_it_moves(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    gate = Gate(folder)
    with running(folder, trust_code=True, stuck_seconds=0.01) as server, connect(server.address) as channel:
        try:
            statuses = watch(channel)
            assert next(statuses).status == SERVING
            held = begin(channel, INFER, make_gated(HELD).SerializeToString())
            gate.wait_until_reached()
            assert next(statuses).status == NOT_SERVING
        finally:
            gate.open()
        held.result()
        assert next(statuses).status == SERVING
        statuses.cancel()


def test_an_unknown_service_is_not_found(digits_server: DigitsServer) -> None:
    with connect(digits_server.address) as channel:
        failure = failure_of(lambda: check(channel, "nobody"))
        assert failure.code is grpc.StatusCode.NOT_FOUND
        assert "nobody" in failure.details
        assert SERVICE in failure.details
        assert failure_of(lambda: check(channel, ADMIN_SERVICE)).code is grpc.StatusCode.NOT_FOUND


# --- reflection -------------------------------------------------------------------------------------------------------


def reflect(channel: grpc.Channel, **request: Any) -> reflection_pb2.ServerReflectionResponse:
    ask: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    (reply,) = ask(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=PATIENCE_SECONDS)
    return reply


def list_services(channel: grpc.Channel) -> list[str]:
    return [entry.name for entry in reflect(channel, list_services="").list_services_response.service]


def test_every_service_is_listed_and_described(digits_server: DigitsServer) -> None:
    with connect(digits_server.address) as channel:
        names = list_services(channel)
        assert names == sorted([SERVICE, INFERENCE_SERVICE, HEALTH, REFLECTION])
        for name in names:
            pool = DescriptorPool()
            files = reflect(channel, file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
            protos = {proto.name: proto for proto in map(FileDescriptorProto.FromString, files)}

            def add(proto: FileDescriptorProto, pool: DescriptorPool = pool, protos: dict[str, Any] = protos) -> None:
                for imported in proto.dependency:
                    if imported in protos:
                        add(protos.pop(imported))
                pool.AddSerializedFile(proto.SerializeToString())

            while protos:
                add(protos.popitem()[1])
            assert pool.FindServiceByName(name).methods


def test_what_is_described_is_the_contract(digits_server: DigitsServer) -> None:
    with connect(digits_server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        described = database.FindFileContainingSymbol(SERVICE)
        contract = FileDescriptorProto()
        pb.DESCRIPTOR.CopyToProto(contract)
        assert described == contract
        assert SERVICE in database.get_services()


def test_symbols_and_files_that_are_not_served_are_not_found(digits_server: DigitsServer) -> None:
    with connect(digits_server.address) as channel:
        for question in (
            {"file_containing_symbol": "no.such.Symbol"},
            {"file_containing_symbol": ADMIN_SERVICE},
            {"file_by_filename": "no/such.proto"},
        ):
            assert reflect(channel, **question).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# --- the operators' listener ------------------------------------------------------------------------------------------


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[RunningServer]:
    with running(write_gated(tmp_path / "gated"), trust_code=True, admin_listen="127.0.0.1:0") as server:
        yield server


def test_without_a_listener_for_operators_there_is_none(tmp_path: Path) -> None:
    with running(write_gated(tmp_path / "gated"), trust_code=True) as server:
        assert server.admin_address == ""


def test_the_operators_service_is_on_their_listener_only(operated: RunningServer) -> None:
    assert operated.admin_address != operated.address
    with connect(operated.address) as channel, connect(operated.admin_address) as admin:
        assert list_services(channel) == sorted([SERVICE, INFERENCE_SERVICE, HEALTH, REFLECTION])
        assert list_services(admin) == sorted([ADMIN_SERVICE, HEALTH, REFLECTION])
        assert (check(channel, SERVICE), check(admin, ADMIN_SERVICE), check(admin)) == (SERVING, SERVING, SERVING)
        assert failure_of(lambda: check(channel, ADMIN_SERVICE)).code is grpc.StatusCode.NOT_FOUND
        found = call(admin, INFER, make_gated().SerializeToString())
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.UNIMPLEMENTED


def test_an_idle_reflection_stream_does_not_hold_up_the_end(tmp_path: Path) -> None:
    sent = threading.Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        sent.wait()

    with (
        running(write_gated(tmp_path / "gated"), trust_code=True, drain_seconds=10_000.0) as server,
        connect(server.address) as channel,
    ):
        ask: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        replies = ask(questions())
        assert next(replies).list_services_response.service
        server.stop.set()
        server.ended.wait()
        with pytest.raises(grpc.RpcError) as ended:
            next(replies)
        sent.set()
        assert read_failure(ended.value).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

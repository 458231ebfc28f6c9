"""What Prometheus reads is what the answers said."""

import re
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.calls import INFER, INFER_STREAM, Outbox
from tests.gated import make_gated, write_gated
from tests.servers import DIGITS, ROOT, RunningServer, count, read_metrics, running, scrape
from twinfer import Client
from twinfer.errors import TwinferError
from twinfer_server.demo import read_rows
from twinfer_server.metrics import Metrics
from twinfer_server.settings import ServerSettings
from twinfer_server.types import MemberResult, Response, State, Timings

ROW = read_rows(DIGITS)[0]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running(DIGITS, metrics_listen="127.0.0.1:0") as started:
        yield started


def test_requests_states_and_refusals_are_counted(server: RunningServer) -> None:
    with Client(server.address) as client:
        for _ in range(3):
            client.infer({"image": ROW.image, "text": ROW.text})
        client.infer({"text": ROW.text})
        with pytest.raises(TwinferError):
            client.infer({"image": b"not an image"})
        with pytest.raises(TwinferError):
            client.infer({"unknown": "text"})
    samples = scrape(server)
    assert count(samples, "twinfer_requests_total") == 6
    assert count(samples, "twinfer_request_failures_total", code="INVALID_ARGUMENT", reason="INVALID_INPUT") == 1
    assert count(samples, "twinfer_request_failures_total", code="INVALID_ARGUMENT", reason="UNKNOWN_INPUT") == 1
    assert count(samples, "twinfer_request_duration_seconds_count") == 4
    for stage in ("decode", "queue", "device"):
        assert count(samples, "twinfer_stage_duration_seconds_count", stage=stage) == 4
    assert count(samples, "twinfer_degraded_responses_total") == 0
    assert count(samples, "twinfer_requests_waiting") == 0
    assert count(samples, "twinfer_member_states_total", member="vision", state="OK") == 3
    assert count(samples, "twinfer_member_states_total", member="vision", state="NO_INPUT") == 1
    assert count(samples, "twinfer_member_states_total", member="language", state="OK") == 4
    assert count(samples, "twinfer_requests_in_flight") == 0
    assert count(samples, "twinfer_request_bytes_in_flight") == 0
    assert count(samples, "twinfer_member_breaker_state", member="vision", state="CLOSED") == 1
    assert count(samples, "twinfer_member_breaker_opened_total", member="vision") == 0


def test_batches_are_measured_as_their_answers_say(server: RunningServer) -> None:
    with Client(server.address) as client:
        answers = [client.infer({"image": ROW.image, "text": ROW.text}) for _ in range(5)]
    executions = {answer.timings.execution for answer in answers}
    # A batch is counted after its requests have been answered, so the last one may still be on its way.
    scrapes = (scrape(server) for _ in range(1000))
    samples = next(
        found
        for found in scrapes
        if sum(count(found, "twinfer_batches_total", execution=execution) for execution in executions) == 5
    )
    assert count(samples, "twinfer_batch_size_sum") == 5
    assert count(samples, "twinfer_overlap_ratio_count") == 5
    said = sum(answer.timings.overlap_ratio or 0.0 for answer in answers)
    assert count(samples, "twinfer_overlap_ratio_sum") == pytest.approx(said, rel=1e-6)
    for name in ("vision", "language"):
        spans = sum((answer.members[name].device_ms or 0.0) / 1000 for answer in answers)
        assert count(samples, "twinfer_member_compute_seconds_sum", member=name) == pytest.approx(spans, abs=1e-6)
        solo = sum((answer.members[name].solo_ms or 0.0) / 1000 for answer in answers)
        assert solo > 0
        assert count(samples, "twinfer_member_solo_latency_seconds_sum", member=name) == pytest.approx(solo, abs=1e-6)
        assert count(samples, "twinfer_cuda_graph_total", member=name, result="miss") == 5


def test_responses_of_every_kind_of_member_are_counted_as_they_were(tmp_path: Path) -> None:
    """No server makes all of these by itself: the states that the members of its responses have are given to the metrics."""
    timings = Timings(decode_seconds=0.001, queue_seconds=0.02, device_seconds=0.3, batch_size=1)
    states = ((State.OK, State.OK), (State.OK, State.LATE), (State.OK, State.SKIPPED), (State.NO_INPUT, State.OK))
    metrics = Metrics(["left", "right"])
    for left, right in states:
        members = MemberResult(left), MemberResult(right)
        metrics.on_response(Response(np.zeros(2, dtype=np.float32), members, None, timings), 0.5)
    with metrics.listening("127.0.0.1:0") as address:
        samples = read_metrics(address)
    assert count(samples, "twinfer_requests_total") == 4
    assert count(samples, "twinfer_degraded_responses_total") == 1
    assert [count(samples, "twinfer_member_states_total", member="left", state=state.name) for state in State] == [3, 0, 0, 0, 0, 1]
    assert [count(samples, "twinfer_member_states_total", member="right", state=state.name) for state in State] == [
        2,
        0,
        1,
        1,
        0,
        0,
    ]
    under = [
        count(samples, "twinfer_stage_duration_seconds_bucket", stage=stage, le="0.1") for stage in ("decode", "queue", "device")
    ]
    assert under == [4, 4, 0]
    assert count(samples, "twinfer_request_duration_seconds_sum") == pytest.approx(2.0)


def test_every_metric_is_in_the_table_of_the_documentation_and_the_other_way_round(tmp_path: Path) -> None:
    with running(write_gated(tmp_path / "gated"), trust_code=True, metrics_listen="127.0.0.1:0") as server:
        with Client(server.address) as client:
            client.infer(make_gated())
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as reply:
            types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", reply.read().decode(), flags=re.M))
    made = {name: kind for name, kind in types.items() if not name.endswith("_created")}
    table = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), flags=re.M)
    assert dict(table) == made


def test_calls_are_counted_by_method_and_code_also_those_that_are_refused(tmp_path: Path) -> None:
    with (
        running(write_gated(tmp_path / "gated"), trust_code=True, metrics_listen="127.0.0.1:0", max_concurrent_calls=1) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        ask: Any = channel.unary_unary
        ask(INFER)(make_gated().SerializeToString())
        for method, message in ((INFER, b"\xff"), ("/made.Up/Name", b"")):
            with pytest.raises(grpc.RpcError):
                ask(method)(message)
        open_stream: Any = channel.stream_stream(INFER_STREAM)
        outbox = Outbox()
        stream = open_stream(iter(outbox))
        outbox.put(make_gated())
        next(stream)
        for method in (INFER, "/made.Up/Name"):
            with pytest.raises(grpc.RpcError):  # the stream has the only place
                ask(method)(make_gated().SerializeToString())
        ask("/grpc.health.v1.Health/Check")(b"")
        outbox.close()
        list(stream)
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        list(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        samples = scrape(server)
    found = {
        (labels["rpc_method"], labels["rpc_response_status_code"]): value
        for (name, pairs), value in samples.items()
        if name == "rpc_server_call_duration_seconds_count" and (labels := dict(pairs))
    }
    infer = INFER[1:]
    assert found == {
        (infer, "OK"): 1,
        (infer, "INVALID_ARGUMENT"): 1,
        (infer, "RESOURCE_EXHAUSTED"): 1,
        (INFER_STREAM[1:], "OK"): 1,
        ("_OTHER", "UNIMPLEMENTED"): 1,
        ("_OTHER", "RESOURCE_EXHAUSTED"): 1,
        ("grpc.health.v1.Health/Check", "OK"): 1,
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "OK"): 1,
    }


def test_readiness_is_that_of_health(tmp_path: Path) -> None:
    with running(write_gated(tmp_path / "gated"), trust_code=True, metrics_listen="127.0.0.1:0") as server:
        samples = scrape(server)
    assert count(samples, "twinfer_ready") == 1
    labels = {"version": version("twinfer"), "ensemble": "gated", "ensemble_version": "7", "device": "cpu"}
    assert count(samples, "twinfer_info", **labels) == 1
    assert count(samples, "twinfer_requests_in_flight_limit") == ServerSettings().max_in_flight_requests

"""Traces: what OpenTelemetry's collector receives of a real server's calls."""

import http.server
import itertools
import os
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests import oip
from tests.calls import BATCH_INFER, INFER, INFER_STREAM, PATIENCE_SECONDS
from tests.collector import Collector, Received, collecting
from tests.failing import FAILING, make_failing, write_failing
from tests.gated import HELD, Gate, make_gated
from tests.servers import RunningServer, running
from tests.test_layering import SERVICE, files_under, imports_of, is_within
from tests.without import without
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.settings import InvalidSettings, traces_are_wanted
from twinfer_server.tracing import start_tracing

NUMBERS = itertools.count(1)


class Caller:
    """A caller with a trace of its own."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id, self.span_id = f"{next(NUMBERS):032x}", f"{next(NUMBERS):016x}"
        self.metadata = [("traceparent", f"00-{self.trace_id}-{self.span_id}-{flags}")]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as started:
        yield started


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = write_failing(tmp_path_factory.mktemp("traced"))
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with running(folder, trust_code=True, metrics_listen="127.0.0.1:0") as started:
            yield started


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def ask(channel: Any, request: pb.InferRequest, metadata: list[tuple[str, str]]) -> pb.InferResponse:
    return pb.InferResponse.FromString(channel.unary_unary(INFER)(request.SerializeToString(), metadata=metadata))


def children(spans: dict[str, Received], parent: Received) -> set[str]:
    return {span.name for span in spans.values() if span.parent_id == parent.span_id}


def test_a_call_continues_its_callers_trace_and_shows_every_step(channel: grpc.Channel, collector: Collector) -> None:
    caller = Caller()
    before = time.time_ns()
    reply = ask(channel, make_failing(request_id="seven"), caller.metadata)
    spans = collector.wait_for_trace(caller.trace_id, INFER[1:], "decode", "queue", "member numbers", "member other", "fusion")
    call = spans.pop(INFER[1:])
    assert (call.parent_id, call.is_server, call.is_error, call.service) == (caller.span_id, True, False, "twinfer")
    assert before <= call.start < call.end <= time.time_ns()
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "twinfer.v1.EnsembleService/Infer",
        "rpc.response.status_code": "OK",
        "twinfer.request.id": "seven",
        "twinfer.member.states": ["other=OK", "numbers=OK"],
        "twinfer.degraded": False,
        "twinfer.batch.size": 1,
        "twinfer.batch.overlap_ratio": reply.timings.overlap_ratio,
        "twinfer.fusion.version": 1,
    }
    assert children(spans, call) == set(spans) == {"decode", "queue", "member numbers", "member other", "fusion"}
    assert call.start <= spans["decode"].start <= spans["decode"].end <= spans["queue"].end
    member = spans["member numbers"]
    assert spans["queue"].start <= member.start < member.end <= spans["fusion"].end
    assert member.end - member.start == pytest.approx(reply.members[1].device_time.ToNanoseconds(), abs=2000)
    facts = {name.removeprefix("twinfer.") for name in member.attributes}
    assert facts == {
        "batch.number", "batch.size", "batch.execution", "batch.overlap_ratio", "member.name", "member.state", "member.cuda_graph",
        "member.bucket.samples", "member.bucket.tokens", "member.solo_latency_seconds",
    }  # fmt: skip
    assert (member.attributes["twinfer.member.state"], member.attributes["twinfer.member.bucket.samples"]) == ("OK", 1)


@pytest.mark.parametrize(
    "traceparent",
    ["", "00-0-0-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01", "x" * 5000],
    ids=["empty", "too short", "an id of zeros", "an unknown version", "long rubbish"],
)
def test_a_malformed_traceparent_begins_a_new_trace(channel: grpc.Channel, collector: Collector, traceparent: str) -> None:
    request_id = f"malformed {next(NUMBERS)}"
    assert ask(channel, make_gated(request_id=request_id), [("traceparent", traceparent)]).request_id == request_id
    [call] = collector.wait_for(lambda span: span.attributes.get("twinfer.request.id") == request_id)
    assert call.parent_id == ""


def test_a_caller_that_does_not_sample_leaves_no_spans(channel: grpc.Channel, collector: Collector) -> None:
    unsampled, sampled = Caller("00"), Caller()
    ask(channel, make_gated(), unsampled.metadata)
    ask(channel, make_gated(), sampled.metadata)
    collector.wait_for_trace(sampled.trace_id, INFER[1:], "fusion")
    assert [span for span in collector.spans if span.trace_id == unsampled.trace_id] == []


def test_a_failed_member_is_an_error_of_its_span_alone_where_the_others_answer(channel: grpc.Channel, collector: Collector) -> None:
    caller = Caller()
    assert ask(channel, make_failing(FAILING), caller.metadata).degraded
    spans = collector.wait_for_trace(caller.trace_id, INFER[1:], "member numbers", "member other", "fusion")
    call, member = spans[INFER[1:]], spans["member numbers"]
    assert (call.is_error, call.attributes["twinfer.degraded"]) == (False, True)
    assert call.attributes["twinfer.member.states"] == ["other=OK", "numbers=FAILED"]
    assert (member.is_error, member.attributes["error.type"]) == (True, "MEMBER_FAILED")
    assert member.attributes["twinfer.member.state"] == "FAILED"
    assert not spans["member other"].is_error


def test_the_span_of_a_late_member_comes_with_its_own_end(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, folder: Path, gate: Gate
) -> None:  # fmt: skip
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    caller = Caller()
    options = pb.InferOptions(timeout=Duration(seconds=1), policy=pb.POLICY_BEST_EFFORT)
    request = make_gated(HELD, options=options, more={"text": pb.Input(text="seven")})
    with running(folder, trust_code=True) as server, grpc.insecure_channel(server.address) as channel:
        assert ask(channel, request, caller.metadata).degraded
        call = collector.wait_for_trace(caller.trace_id, INFER[1:])[INFER[1:]]
        assert call.attributes["twinfer.member.states"] == ["numbers=LATE", "picture=NO_INPUT", "words=OK"]
        gate.open()
        member = collector.wait_for_trace(caller.trace_id, "member numbers")["member numbers"]
    assert (member.attributes["twinfer.member.state"], member.attributes["error.type"]) == ("LATE", "MEMBER_LATE")
    assert (member.parent_id, member.end > call.end) == (call.span_id, True)


def test_a_call_that_fails_for_a_member_is_an_error_with_its_code_and_reason(channel: grpc.Channel, collector: Collector) -> None:
    caller = Caller()
    with pytest.raises(grpc.RpcError):
        ask(channel, make_failing(FAILING, policy=pb.POLICY_REQUIRE_ALL), caller.metadata)
    spans = collector.wait_for_trace(caller.trace_id, INFER[1:], "member numbers")
    call, member = spans[INFER[1:]], spans["member numbers"]
    assert (call.is_error, call.attributes["error.type"], call.attributes["rpc.response.status_code"]) == (
        True,
        "INTERNAL",
        "INTERNAL",
    )
    assert call.attributes["twinfer.reason"] == "MEMBER_FAILED"
    assert (member.is_error, member.attributes["twinfer.member.state"]) == (True, "FAILED")


def test_a_callers_own_fault_is_no_error_of_the_servers_span(channel: grpc.Channel, collector: Collector) -> None:
    caller = Caller()
    with pytest.raises(grpc.RpcError):
        ask(channel, pb.InferRequest(inputs={"unknown": pb.Input(text="x")}), caller.metadata)
    call = collector.wait_for_trace(caller.trace_id, INFER[1:])[INFER[1:]]
    assert not call.is_error
    assert call.attributes["error.type"] == call.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"


def test_an_unknown_method_has_no_name_of_its_own(channel: Any, collector: Collector) -> None:
    caller = Caller()
    with pytest.raises(grpc.RpcError):
        channel.unary_unary("/made.Up/Name")(b"", metadata=caller.metadata)
    call = collector.wait_for_trace(caller.trace_id, "_OTHER")["_OTHER"]
    assert (call.is_error, call.attributes["error.type"]) == (True, "UNIMPLEMENTED")


def test_each_request_of_a_batch_has_its_span(channel: Any, collector: Collector) -> None:
    caller = Caller()
    unknown = pb.InferRequest(inputs={"unknown": pb.Input(text="x")}, request_id="bad")
    message = pb.BatchInferRequest(requests=[make_gated(request_id="one"), make_gated(request_id="two"), unknown])
    channel.unary_unary(BATCH_INFER)(message.SerializeToString(), metadata=caller.metadata)
    requests = collector.wait_for(lambda span: span.trace_id == caller.trace_id and span.name == "request", 3)
    call = collector.wait_for_trace(caller.trace_id, BATCH_INFER[1:])[BATCH_INFER[1:]]
    assert {span.parent_id for span in requests} == {call.span_id}
    errors = {span.attributes["twinfer.request.id"]: span.attributes.get("error.type") for span in requests}
    assert errors == {"one": None, "two": None, "bad": "UNKNOWN_INPUT"}
    members = collector.wait_for(lambda span: span.trace_id == caller.trace_id and span.name == "member numbers", 2)
    assert {span.parent_id for span in members} == {span.span_id for span in requests if not span.is_error}
    assert {span.attributes["twinfer.batch.size"] for span in members} <= {1, 2}


def test_each_message_of_a_stream_has_its_span_inside_the_streams(channel: Any, collector: Collector) -> None:
    caller = Caller()
    messages = [pb.InferStreamRequest(request=make_gated(request_id=str(n))).SerializeToString() for n in range(2)]
    stream = channel.stream_stream(INFER_STREAM)(iter([*messages, b"\xff"]), timeout=PATIENCE_SECONDS, metadata=caller.metadata)
    assert len(list(stream)) == 3
    call = collector.wait_for_trace(caller.trace_id, INFER_STREAM[1:])[INFER_STREAM[1:]]
    assert call.attributes["rpc.response.status_code"] == "OK"
    spans = collector.wait_for(lambda span: span.trace_id == caller.trace_id and span.name == "message", 3)
    assert {span.parent_id for span in spans} == {call.span_id}
    assert {span.attributes.get("twinfer.request.id"): span.attributes.get("error.type") for span in spans} == {
        "0": None, "1": None, None: "MALFORMED_MESSAGE"
    }  # fmt: skip
    fusions = collector.wait_for(lambda span: span.trace_id == caller.trace_id and span.name == "fusion", 2)
    assert {span.parent_id for span in fusions} <= {span.span_id for span in spans}


def test_the_open_inference_protocol_is_traced_alike(channel: Any, collector: Collector) -> None:
    caller = Caller()
    numbers = oip.raw("numbers", "FP32", [[0.0, 0.0, 9.0]])
    channel.unary_unary(oip.MODEL_INFER)(oip.request("failing", [numbers]).SerializeToString(), metadata=caller.metadata)
    spans = collector.wait_for_trace(caller.trace_id, oip.MODEL_INFER[1:], "decode", "queue", "member numbers", "fusion")
    call = spans[oip.MODEL_INFER[1:]]
    assert (call.parent_id, call.attributes["rpc.method"]) == (caller.span_id, "inference.GRPCInferenceService/ModelInfer")
    assert children(spans, call) == {"decode", "queue", "member numbers", "fusion"}


def test_a_sampled_call_is_an_example_in_the_latency_histograms(server: RunningServer, channel: grpc.Channel) -> None:
    caller = Caller()
    ask(channel, make_gated(), caller.metadata)
    request = urllib.request.Request(f"http://{server.metrics_address}/metrics")
    request.add_header("Accept", "application/openmetrics-text; version=1.0.0")
    with urllib.request.urlopen(request) as reply:
        lines = reply.read().decode().splitlines()
    examples = {re.split(r"[{ ]", line)[0] for line in lines if f'# {{trace_id="{caller.trace_id}"}}' in line}
    assert examples == {"twinfer_request_duration_seconds_bucket", "rpc_server_call_duration_seconds_bucket"}


# --- what the variables ask for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "are_wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
    ids=lambda value: ", ".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_traces_are_wanted_where_the_variables_say_where_they_go(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], are_wanted: bool
) -> None:  # fmt: skip
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert traces_are_wanted() is are_wanted


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "OTEL_EXPORTER_OTLP_PROTOCOL: found 'smoke'; allowed: grpc, http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "OTEL_TRACES_EXPORTER: found 'jaeger'; allowed: "),
    ],
)
def test_a_variable_that_names_nothing_known_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=re.escape(words)):
        start_tracing()


def test_spans_go_over_http_where_the_protocol_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            paths.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
        tracing = start_tracing()
        span = tracing.begin_call("a.B/C", (), time.monotonic())
        assert span is not None
        span.end_call("OK", time.monotonic())
        tracing.close()
        receiver.shutdown()
    assert paths == ["/v1/traces"]


def test_traces_without_their_extra_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("GRPC_EXPERIMENTS", "")
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")
    done = without({"opentelemetry"}, "serve", "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: OTEL_* asks for traces")
    assert "pip install 'twinfer[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_opentelemetry_is_imported_by_one_module_and_that_only_where_traces_are_asked_for() -> None:
    known = [(module, found) for path, module in files_under(SERVICE) for found in imports_of(path.read_text(), module)]
    assert {module for module, found in known if is_within(found.name, {"opentelemetry"})} == {"twinfer_server.tracing"}
    users = {(module, found.when) for module, found in known if is_within(found.name, {"twinfer_server.tracing"})}
    assert users == {("twinfer_server.serve", "types"), ("twinfer_server.serve", "call")}

"""A timeline shows what a running server did, stream by stream, and nothing is recorded while none is captured."""

import json
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from typer.testing import CliRunner

from tests.servers import DIGITS, RunningServer, running
from twinfer import Client
from twinfer.cli import app
from twinfer.v1 import ensemble_admin_service_pb2 as pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc
from twinfer_server.demo import read_rows

ROW = read_rows(DIGITS)[0]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(DIGITS, admin_listen="127.0.0.1:0", metrics_listen="127.0.0.1:0") as started:
        yield started


@pytest.fixture
def load(server: RunningServer) -> Iterator[None]:
    """Callers that ask all the time."""
    done = threading.Event()

    def ask() -> None:
        with Client(server.address) as client:
            while not done.is_set():
                client.infer({"image": ROW.image, "text": ROW.text}, request_id="asked")

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    yield
    done.set()
    for caller in callers:
        caller.join()


def capture(address: str, seconds: float) -> dict[str, Any]:
    with grpc.insecure_channel(address) as channel:
        stub = ensemble_admin_service_pb2_grpc.EnsembleAdminServiceStub(channel)
        request = pb.CaptureTimelineRequest(duration=Duration(nanos=round(seconds * 1e9)))
        document: dict[str, Any] = json.loads(stub.CaptureTimeline(request, timeout=30).trace_json)
        return document


@pytest.mark.usefixtures("load")
def test_every_stream_and_every_step_of_a_request_has_its_track(server: RunningServer) -> None:
    events = capture(server.admin_address, 0.4)["traceEvents"]
    names = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert set(names) == {
        "admission", "decode", "queue", "encode", "launch", "copy", "member vision", "member language", "fusion"
    }  # fmt: skip
    used = {event["tid"] for event in events if event["ph"] in "Xb"}
    assert used == set(names.values())


@pytest.mark.usefixtures("load")
def test_on_a_members_stream_spans_follow_each_other_and_a_batch_fuses_after_its_members(server: RunningServer) -> None:
    events = capture(server.admin_address, 0.4)["traceEvents"]
    tracks: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault(event["cat"], []).append(event)
    for track in ("member vision", "member language"):  # of several batches
        spans = sorted(tracks[track], key=lambda span: span["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in pairwise(spans)), track
    ends = [span["ts"] + span["dur"] for track in ("member vision", "member language") for span in tracks[track]]
    for fused in sorted(tracks["fusion"], key=lambda span: span["ts"])[1:]:  # the first one's members may have begun before
        assert min(abs(end - fused["ts"]) for end in ends) < 1, "a fusion begins when the last member ends"


@pytest.mark.usefixtures("load")
def test_requests_begin_and_end_on_their_tracks_and_carry_their_request_id(server: RunningServer) -> None:
    events = capture(server.admin_address, 0.4)["traceEvents"]
    begun = {(event["cat"], event["id"]): event for event in events if event["ph"] == "b"}
    ended = {(event["cat"], event["id"]): event for event in events if event["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert all(ended[key]["ts"] >= event["ts"] for key, event in begun.items())
    assert {event["args"].get("request_id") for key, event in begun.items() if key[0] == "decode"} == {"asked"}


@pytest.mark.usefixtures("load")
def test_the_command_line_writes_a_trace(server: RunningServer, tmp_path: Path) -> None:
    arguments = ["timeline", "--server", server.admin_address, "--seconds", "0.4"]
    trace = tmp_path / "trace.json"
    result = CliRunner().invoke(app, [*arguments, "-o", str(trace)])
    assert result.exit_code == 0, result.output
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_quiet_stretch_has_no_spans(server: RunningServer) -> None:
    events = capture(server.admin_address, 0.05)["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}


def test_a_folder_that_is_not_there_is_said_before_the_capture(server: RunningServer, tmp_path: Path) -> None:
    arguments = ["timeline", "--server", server.admin_address, "--seconds", "0.05"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "nowhere" / "trace.json")])
    assert (result.exit_code, "there is no such folder" in " ".join(result.output.split())) == (2, True)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0], ids=["none", "negative", "more than a minute"])
def test_a_duration_out_of_bounds_is_refused(server: RunningServer, seconds: float) -> None:
    with grpc.insecure_channel(server.admin_address) as channel:
        stub = ensemble_admin_service_pb2_grpc.EnsembleAdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.CaptureTimeline(pb.CaptureTimelineRequest(duration=Duration(seconds=int(seconds))), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 60 s" in str(caught.value.details())


def test_two_cannot_watch_at_once(server: RunningServer) -> None:
    with grpc.insecure_channel(server.admin_address) as channel:
        stub = ensemble_admin_service_pb2_grpc.EnsembleAdminServiceStub(channel)
        request = pb.CaptureTimelineRequest(duration=Duration(seconds=1))
        calls = [stub.CaptureTimeline.future(request, timeout=30) for _ in range(2)]
        codes = sorted((call.code() for call in calls), key=lambda code: code.value[0])
    assert codes == [grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED]

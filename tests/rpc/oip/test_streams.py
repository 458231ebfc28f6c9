"""ModelStreamInfer: answers in the order of the requests, errors in their midst, and an end when the server drains."""

import queue
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import oip
from tests.calls import connect, failure_of
from tests.gated import HELD, Gate, write_gated
from tests.servers import running
from twinfer_server.rpc.oip import grpc_service_pb2 as pb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_gated(tmp_path / "gated")
    toml = folder / "ensemble.toml"
    toml.write_text(toml.read_text().replace('execution = "serial"', 'execution = "streams"'))
    return folder


def numbers(request_id: str, first: float = 0.0, **parameters: object) -> bytes:
    values = oip.raw("numbers", "FP32", [[first, 0, 9]])
    return oip.request("gated", [values], request_id=request_id, parameters=parameters).SerializeToString()


def text(request_id: str) -> bytes:
    return oip.request("gated", [oip.texts("text", "two")], request_id=request_id).SerializeToString()


def read(replies: Any) -> list[pb.ModelStreamInferResponse]:
    return [pb.ModelStreamInferResponse.FromString(reply) for reply in replies]


def ids(replies: Any) -> list[str]:
    return [answer.infer_response.id for answer in read(replies)]


def test_answers_come_in_the_order_of_the_requests(folder: Path, gate: Gate) -> None:
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = oip.stream(channel, iter(outbox.get, None))
        outbox.put(numbers("held", HELD))
        gate.wait_until_reached()
        # Its own member is free, and other callers are answered meanwhile; here it stands in line.
        outbox.put(text("quick"))
        assert isinstance(oip.infer(channel, pb.ModelInferRequest.FromString(text("other"))), pb.ModelInferResponse)
        gate.open()
        outbox.put(None)
        assert ids(answers) == ["held", "quick"]
        assert answers.code() is grpc.StatusCode.OK


def test_a_stream_without_requests_ends_well(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        assert list(oip.stream(channel, [])) == []


def test_a_request_that_fails_says_which_and_the_stream_lives_on(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        unknown = pb.ModelInferRequest(model_name="x", id="unknown").SerializeToString()
        answers = read(oip.stream(channel, [text("one"), unknown, b"\xff\xff", text("two")]))
        assert [answer.infer_response.id for answer in answers] == ["one", "unknown", "", "two"]
        codes = [answer.error_message.partition(" ")[0] for answer in answers]
        assert codes == ["", "[NOT_FOUND]", "[INVALID_ARGUMENT]", ""]


def test_every_answer_is_the_last_to_its_request(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = read(oip.stream(channel, [numbers("a", triton_enable_empty_final_response=True), numbers("b"), b"\xff"]))
        assert len(answers) == 3
        assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)


def test_more_requests_than_a_stream_may_have_in_flight_are_answered_all_the_same(folder: Path) -> None:
    with running(folder, trust_code=True, max_stream_requests=2) as server, connect(server.address) as channel:
        names = [str(number) for number in range(50)]
        assert ids(oip.stream(channel, [text(name) for name in names])) == names


def test_a_drain_answers_what_was_read_and_ends_the_stream(folder: Path, gate: Gate) -> None:
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = oip.stream(channel, iter(outbox.get, None))
        outbox.put(numbers("held", HELD))
        gate.wait_until_reached()
        server.stop.set()
        gate.open()
        assert ids([next(answers)]) == ["held"]
        failure = failure_of(lambda: next(answers))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        outbox.put(None)


def test_a_caller_who_goes_away_leaves_nothing_behind(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = oip.stream(channel, iter(outbox.get, None))
        outbox.put(numbers("held", HELD))
        gate.wait_until_reached()
        outbox.put(text("next"))
        answers.cancel()
        outbox.put(None)
        gate.open()
        assert ids(oip.stream(channel, [text("other")])) == ["other"]
    # The server has ended, which it does only when every stream has.

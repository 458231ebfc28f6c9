"""InferStream: rows in, answers out as they are ready, bounded on both sides, and nothing left behind when a caller goes away."""

import gc
import logging
from pathlib import Path

import grpc
import pytest

from tests.calls import Outbox, connect, failure_of, ids, infer, read, send, stream
from tests.gated import HELD, Gate, make_gated, tensor
from tests.servers import running, write_ensemble
from twinfer import Client
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2


@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_answers_come_as_they_are_ready_and_not_in_the_order_of_the_rows(folder: Path, gate: Gate, execution: str) -> None:
    toml = folder / "ensemble.toml"
    toml.write_text(toml.read_text().replace('execution = "serial"', f'execution = "{execution}"'))
    outbox = Outbox()
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = stream(channel, outbox)
        outbox.put(make_gated(HELD, "held"))
        gate.wait_until_reached()
        # Its own member is free, so it need not wait for the one that stands at the gate.
        outbox.put(pb.InferRequest(request_id="quick", inputs={"text": pb.Input(text="two")}))
        assert ids(read([next(answers)])) == ["quick"]
        gate.open()
        assert ids(read([next(answers)])) == ["held"]
        outbox.close()
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK


def test_a_stream_without_rows_ends_well(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = stream(channel, [])
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK


def test_rows_sent_before_the_half_close_are_all_answered_after_it(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = stream(channel, send(make_gated(HELD, "1"), make_gated(0, "2"), make_gated(0, "3")))
        gate.wait_until_reached()
        gate.open()
        assert sorted(ids(read(answers))) == ["1", "2", "3"]


def test_many_streams_of_many_rows_get_every_answer_once(folder: Path) -> None:
    with running(folder, trust_code=True, max_in_flight_requests=500) as server, connect(server.address) as channel:
        streams = [stream(channel, send(*(make_gated(0, f"{name}-{n}") for n in range(50)))) for name in range(10)]
        for name, answers in enumerate(streams):
            assert sorted(ids(read(answers))) == sorted(f"{name}-{n}" for n in range(50))


def test_a_stream_holds_no_more_rows_than_it_may(folder: Path, gate: Gate) -> None:
    # One row more in hand, and the engine would refuse it as overload.
    with (
        running(folder, trust_code=True, max_stream_requests=4, max_in_flight_requests=4) as server,
        connect(server.address) as channel,
    ):
        rows = [make_gated(HELD, "0"), *(make_gated(0, str(n)) for n in range(1, 50))]
        answers = stream(channel, send(*rows))
        gate.wait_until_reached()
        gate.open()
        assert sorted(ids(read(answers)), key=int) == [str(n) for n in range(50)]


LARGE_TOML = """
    name = "large"
    version = 1
    task = "embedding"
    execution = "serial"

    [members.only]
    model = "python:models.py:Large"
    output = { kind = "embedding" }
    [members.only.input.numbers]
    kind = "tensor"
    dtype = "float32"
    shape = [1]

    [fusion]
    method = "concatenation"

    [batching]
    max_batch_size = 1
"""

LARGE_MODELS = """
    from pathlib import Path

    import torch


    class Large(torch.nn.Module):
        def forward(self, numbers):
            with Path(__file__).with_name("calls").open("a") as calls:
                calls.write("x" * int((numbers[:, 0] == 5.0).sum()))
            return numbers.expand(-1, 200_000)
"""


def test_a_caller_who_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    folder = write_ensemble(tmp_path / "large", LARGE_TOML, {"models.py": LARGE_MODELS})

    def ask(value: float) -> pb.InferRequest:
        return pb.InferRequest(inputs={"numbers": pb.Input(tensor=tensor([value]))})

    with running(folder, trust_code=True, max_stream_requests=2) as server, connect(server.address) as channel:
        answers = stream(channel, send(*[ask(5.0)] * 40))
        assert read([next(answers)])[0].HasField("response")
        with connect(server.address) as other:
            for _ in range(40):  # while these are answered, the stream has every chance to run ahead
                assert isinstance(infer(other, ask(1.0)), pb.InferResponse)
        computed = len((folder / "calls").read_text())
        # What was read, some megabytes in the buffers of the connection, and two rows in hand.
        assert computed <= 20
        assert len(list(answers)) == 39


def test_a_row_that_outstays_its_timeout_gets_an_error_and_the_others_their_answers(folder: Path, gate: Gate) -> None:
    outbox = Outbox()
    with running(folder, trust_code=True, breaker_stall_seconds=60.0) as server, connect(server.address) as channel:
        answers = stream(channel, outbox)
        outbox.put(make_gated(HELD, "late", pb.InferOptions(timeout={"seconds": 2})))
        gate.wait_until_reached()
        outbox.put(pb.InferRequest(request_id="quick", inputs={"text": pb.Input(text="two")}))
        first, second = read([next(answers), next(answers)])
        assert ids([first]) == ["quick"]
        assert (second.request_id, second.error.code) == ("late", grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        gate.open()
        outbox.put(make_gated(0, "after"))
        outbox.close()
        assert ids(read(answers)) == ["after"]


def test_the_deadline_of_a_stream_bounds_its_rows(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        answers = stream(channel, send(make_gated(HELD, "1")), timeout=1.0)
        gate.wait_until_reached()
        replies = read(answers)  # the server answers before the deadline, by its reply margin
        assert [(reply.request_id, reply.error.code) for reply in replies] == [("1", grpc.StatusCode.DEADLINE_EXCEEDED.value[0])]


def test_a_caller_who_goes_away_leaves_nothing_behind(folder: Path, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running(folder, trust_code=True, max_in_flight_requests=3, max_stream_requests=3) as server:
        for _ in range(5):
            outbox = Outbox()
            with connect(server.address) as channel:
                answers = stream(channel, outbox)
                outbox.put(*(make_gated(0, str(n)) for n in range(20)))
                assert ids(read([next(answers)]))
                answers.cancel()
                outbox.close()
        with connect(server.address) as channel:
            answers = stream(channel, send(*[make_gated(HELD, "held")] * 3))
            gate.wait_until_reached()
            answers.cancel()
        gate.open()
        # There is room for three rows; if the cancelled ones were still in hand, this would be refused for good.
        with Client(server.address, attempts=5) as client:
            assert client.infer(make_gated()).label == "c"
    gc.collect()  # a task whose exception nobody took complains when it goes
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING and "overdue" not in record.msg
    ] == []


def test_large_rows_travel_over_a_stream(folder: Path) -> None:
    pixels = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[1000, 1000, 3], data=bytes(3_000_000))
    large = pb.InferRequest(request_id="large", inputs={"image": pb.Input(tensor=pixels)})
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        rows = [large if n % 3 == 0 else make_gated(0, str(n)) for n in range(12)]
        assert sorted(ids(read(stream(channel, send(*rows))))) == sorted(request.request_id for request in rows)


def test_a_row_over_the_message_limit_ends_its_stream_and_no_other(folder: Path) -> None:
    outbox = Outbox()
    with running(folder, trust_code=True, max_message_bytes=100_000) as server, connect(server.address) as channel:
        other = stream(channel, outbox)
        outbox.put(make_gated(0, "1"))
        assert ids(read([next(other)])) == ["1"]
        large = pb.InferRequest(inputs={"text": pb.Input(text="x" * 100_000)})
        failure = failure_of(lambda: list(stream(channel, send(make_gated(0, "2"), large))))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        outbox.put(make_gated(0, "3"))
        outbox.close()
        assert ids(read(other)) == ["3"]

"""BatchInfer: many rows in one call, a result for each in their order, and room for everybody else beside them."""

from pathlib import Path

import grpc
import numpy as np
import torch
from torch import Tensor, nn

from tests.calls import BATCH_INFER, Failure, batch_infer, begin, call, connect, infer
from tests.gated import HELD, Gate, make_gated, tensor
from tests.models import write_members
from tests.servers import count, running, scrape
from twinfer import Client
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import error_pb2, tensor_pb2

MEBIBYTE = 2**20
TEXT = pb.InferRequest(request_id="text", inputs={"text": pb.Input(text="two")})


def results_of(reply: pb.BatchInferResponse | Failure) -> list[pb.BatchInferResult]:
    assert isinstance(reply, pb.BatchInferResponse), reply
    return list(reply.results)


def said(result: pb.BatchInferResult) -> str:
    """Give the best class of an answer, or the reason of an error."""
    if result.HasField("error"):
        return error_pb2.Reason.Name(result.error.reason).removeprefix("REASON_")
    return result.response.prediction.classification.classes[0].label


def opinion(number: int) -> pb.InferRequest:
    """Make a row whose answer is class a, b or c, by turns."""
    logits = [9.0 * (number % 3 == place) for place in range(3)]
    return pb.InferRequest(request_id=str(number), inputs={"numbers": pb.Input(tensor=tensor(logits))})


def test_every_row_has_its_result_in_its_place_however_many_flights_they_take(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        for size in (1, 4, 5, 50):
            results = results_of(batch_infer(channel, *(opinion(number) for number in range(size))))
            assert [result.response.request_id for result in results] == [str(number) for number in range(size)]
            assert "".join(map(said, results)) == ("abc" * size)[:size]


def test_a_row_that_fails_does_so_alone_and_as_it_would_by_itself(folder: Path) -> None:
    bad = [
        make_gated(options=pb.InferOptions(top_k=99)),
        make_gated(request_id="x" * 300),
        make_gated(more={"image": pb.Input(image=b"no image")}),
        make_gated(more={"unknown": pb.Input(text="?")}),
        pb.InferRequest(),
        pb.InferRequest(ensemble="other", inputs=make_gated().inputs),
        make_gated(options=pb.InferOptions(timeout={"seconds": -1})),
    ]
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        alone = [infer(channel, request) for request in bad]
        results = results_of(batch_infer(channel, make_gated(), *bad, make_gated()))
    assert [said(result) for result in (results[0], results[-1])] == ["c", "c"]
    for result, failure in zip(results[1:-1], alone, strict=True):
        assert isinstance(failure, Failure)
        assert result.error == failure.error


class Places(nn.Module):
    """Answers by a table of three places, and raises at any other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(3)[x[:, 0]] * 9.0


def test_a_number_that_the_member_does_not_bear_is_its_own_rows_failure(tmp_path: Path) -> None:
    folder = write_members(tmp_path, {"place": Places()}, max_batch_size=8)
    spec = folder / "ensemble.toml"
    spec.write_text(spec.read_text().replace('"float32"', '"int64"\nmin = 0\nmax = 2'))
    with running(folder, trust_code=True) as server, Client(server.address) as client:
        outcomes = client.infer_batch([{"place": np.array([number % 4])} for number in range(8)])
    assert [outcome.error is None for outcome in outcomes] == [True, True, True, False] * 2
    assert str(outcomes[3].error) == "inputs['place']: found the number 3; allowed: at least 0 and at most 2"


def test_a_batch_of_nothing_but_bad_rows_is_a_reply(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        results = results_of(batch_infer(channel, pb.InferRequest(), pb.InferRequest(request_id="x" * 300)))
    assert [said(result) for result in results] == ["MISSING_INPUT", "INVALID_OPTION"]


def test_what_concerns_the_whole_fails_the_call(folder: Path) -> None:
    with running(folder, trust_code=True, max_batch_requests=3) as server, connect(server.address) as channel:
        none, too_many = batch_infer(channel), batch_infer(channel, *[make_gated()] * 4)
        other, newer = batch_infer(channel, make_gated(), ensemble="other"), batch_infer(channel, make_gated(), version=8)
        malformed = call(channel, BATCH_INFER, b"\xff")
        assert len(results_of(batch_infer(channel, *[make_gated()] * 3, ensemble="gated", version=7))) == 3
        with Client(server.address) as client:
            assert client.describe().limits.max_batch_requests == 3
    for failure, reason, text in (
        (none, "INVALID_OPTION", "requests: found 0; allowed: 1 to 3"),
        (too_many, "INVALID_OPTION", "requests: found 4; allowed: 1 to 3"),
        (other, "UNKNOWN_ENSEMBLE", "'other' version 0 is not served"),
        (newer, "UNKNOWN_ENSEMBLE", "'' version 8 is not served"),
        (malformed, "MALFORMED_MESSAGE", "twinfer.v1.BatchInferRequest"),
    ):
        assert isinstance(failure, Failure)
        assert failure.reason == reason
        assert text in failure.details


def test_a_batch_is_never_allowed_more_rows_than_there_are_places(folder: Path) -> None:
    with running(folder, trust_code=True, max_in_flight_requests=5) as server, connect(server.address) as channel:
        assert len(results_of(batch_infer(channel, *[make_gated()] * 5))) == 5
        failure = batch_infer(channel, *[make_gated()] * 6)
    assert isinstance(failure, Failure)
    assert "requests: found 6; allowed: 1 to 5" in failure.details


def test_a_batch_over_what_may_be_in_hand_is_refused_whole_and_single_rows_still_find_a_place(folder: Path, gate: Gate) -> None:
    with (
        running(folder, trust_code=True, max_in_flight_requests=16, metrics_listen="127.0.0.1:0") as server,
        connect(server.address) as channel,
    ):
        held = begin(
            channel, BATCH_INFER, pb.BatchInferRequest(requests=[make_gated(HELD), *[make_gated()] * 12]).SerializeToString()
        )
        gate.wait_until_reached()
        refused = batch_infer(channel, make_gated(), make_gated())
        assert isinstance(refused, Failure)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert "13 requests are in flight and this call has 2; allowed: 14" in refused.details
        assert int(refused.pushback) > 0
        assert count(scrape(server), "twinfer_requests_in_flight") == 13
        assert isinstance(infer(channel, TEXT), pb.InferResponse)
        gate.open()
        assert [said(result) for result in pb.BatchInferResponse.FromString(held.result()).results] == ["c"] * 13
        assert len(results_of(batch_infer(channel, *[make_gated()] * 16))) == 16
        assert count(scrape(server), "twinfer_requests_in_flight") == 0
        assert count(scrape(server), "twinfer_request_bytes_in_flight") == 0


def test_rows_are_counted_one_by_one(folder: Path) -> None:
    with (
        running(folder, trust_code=True, metrics_listen="127.0.0.1:0") as server,
        connect(server.address) as channel,
    ):
        results_of(batch_infer(channel, *[make_gated()] * 6, pb.InferRequest(), make_gated(request_id="x" * 300)))
        samples = scrape(server)
    assert count(samples, "twinfer_requests_total") == 8
    assert count(samples, "twinfer_request_failures_total", code="INVALID_ARGUMENT", reason="MISSING_INPUT") == 1
    assert count(samples, "twinfer_request_failures_total", code="INVALID_ARGUMENT", reason="INVALID_OPTION") == 1
    assert count(samples, "twinfer_request_duration_seconds_count") == 6


def test_the_deadline_of_the_call_is_every_rows_and_the_others_are_answered_by_then(folder: Path, gate: Gate) -> None:
    # The member that stands at the gate is not switched off meanwhile.
    with running(folder, trust_code=True, breaker_stall_seconds=1000) as server, connect(server.address) as channel:
        message = pb.BatchInferRequest(requests=[TEXT, *[make_gated(HELD)] * 10, TEXT]).SerializeToString()
        under_way = begin(channel, BATCH_INFER, message, timeout=1.5)
        gate.wait_until_reached()
        results = pb.BatchInferResponse.FromString(under_way.result()).results
    assert [result.WhichOneof("result") for result in results] == ["response", *["error"] * 10, "response"]
    assert {result.error.code for result in results[1:-1]} == {grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}


def test_a_caller_who_goes_away_leaves_nothing_behind(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True, max_in_flight_requests=16, max_batch_requests=16) as server:
        with connect(server.address) as channel:
            under_way = begin(channel, BATCH_INFER, pb.BatchInferRequest(requests=[make_gated(HELD)] * 16).SerializeToString())
            gate.wait_until_reached()
            under_way.cancel()
        gate.open()
        # There is room for sixteen rows; if the cancelled ones were still in hand, this would be refused for good.
        with Client(server.address, attempts=5) as client:
            assert [outcome.response.label for outcome in client.infer_batch([make_gated()] * 16)] == ["c"] * 16


def test_a_drain_answers_a_batch_that_is_in_hand_and_refuses_the_next(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        held = begin(
            channel, BATCH_INFER, pb.BatchInferRequest(requests=[make_gated(HELD), *[make_gated()] * 9]).SerializeToString()
        )
        gate.wait_until_reached()
        server.stop.set()
        refused = batch_infer(channel, TEXT)
        while not isinstance(refused, Failure):  # the drain begins a little later
            refused = batch_infer(channel, TEXT)
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        gate.open()
        assert [said(result) for result in pb.BatchInferResponse.FromString(held.result()).results] == ["c"] * 10


def test_large_rows_travel_in_one_batch(folder: Path) -> None:
    pixels = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[1000, 1000, 3], data=bytes(3_000_000))
    large = pb.InferRequest(request_id="large", inputs={"image": pb.Input(tensor=pixels)})
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        results = results_of(batch_infer(channel, *[large, TEXT] * 4))
    assert [result.response.request_id for result in results] == ["large", "text"] * 4

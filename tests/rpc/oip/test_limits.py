"""The limits, deadlines and the drain hold for the Open Inference Protocol as for the typed service."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import oip
from tests.calls import Failure, begin, call, connect
from tests.gated import HELD, Gate
from tests.servers import running
from twinfer_server.rpc.oip import grpc_service_pb2 as pb


def numbers(*firsts: float, **parameters: object) -> pb.ModelInferRequest:
    return oip.request("gated", [oip.raw("numbers", "FP32", [[first, 0, 9] for first in firsts])], parameters=parameters)


def held(channel: grpc.Channel, gate: Gate) -> Any:
    """A call whose request stands at the gate."""
    future = begin(channel, oip.MODEL_INFER, numbers(HELD).SerializeToString())
    gate.wait_until_reached()
    return future


def test_a_request_whose_timeout_passes_is_late(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        found = oip.infer(channel, numbers(HELD, timeout=300_000))
        gate.open()
        assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert found.error.member == "numbers"


def test_a_request_that_waits_behind_a_stuck_one_has_its_own_timeout(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        future = held(channel, gate)
        found = oip.infer(channel, numbers(0.0, 0.0, timeout=300_000))
        assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "request 0: " in found.details
        gate.open()
        assert pb.ModelInferResponse.FromString(future.result()).outputs


def test_requests_beyond_what_may_be_in_flight_are_told_when_to_come_again(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True, max_in_flight_requests=2) as server, connect(server.address) as channel:
        config = oip.ask(channel, "ModelConfig", pb.ModelConfigRequest(name="gated"), pb.ModelConfigResponse).config
        assert config.max_batch_size == 2
        future = held(channel, gate)
        found = oip.infer(channel, numbers(0.0, 0.0))
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert int(found.pushback) >= 10
        gate.open()
        assert pb.ModelInferResponse.FromString(future.result()).outputs


def test_a_message_over_the_limit_is_refused_and_one_below_is_read(folder: Path) -> None:
    with running(folder, trust_code=True, max_message_bytes=1_000_000) as server, connect(server.address) as channel:
        found = call(channel, oip.MODEL_INFER, bytes(1_000_001))
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Large enough to be read on another thread, in either form.
        pixels = [oip.tensor("image", "UINT8", [1, 500, 600, 3]), bytes(900_000)]
        typed = oip.tensor("image", "UINT8", [1, 500, 600, 3], pb.InferTensorContents(uint_contents=bytes(900_000)))
        for tensor in (pixels, (typed, None)):
            assert isinstance(oip.infer(channel, oip.request("gated", [tensor])), pb.ModelInferResponse)  # type: ignore[list-item]


def test_a_drain_answers_what_is_in_flight_and_refuses_the_rest(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        future = held(channel, gate)
        server.stop.set()
        found = call(channel, f"{oip.SERVICE}/ServerReady", b"")
        while not isinstance(found, Failure):  # the drain begins a little later
            found = call(channel, f"{oip.SERVICE}/ServerReady", b"")
        assert found.code is grpc.StatusCode.UNAVAILABLE
        assert oip.infer(channel, numbers(0.0)).code is grpc.StatusCode.UNAVAILABLE
        gate.open()
        assert pb.ModelInferResponse.FromString(future.result()).outputs


def test_a_caller_who_goes_away_takes_his_requests_along(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True, max_in_flight_requests=3) as server, connect(server.address) as channel:
        future = held(channel, gate)
        waiting = begin(channel, oip.MODEL_INFER, numbers(0.0, 0.0).SerializeToString())
        while True:  # until both requests are in flight
            found = oip.infer(channel, numbers(0.0, timeout=50_000))
            if found.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
        waiting.cancel()
        while oip.infer(channel, numbers(0.0, 0.0, timeout=50_000)).code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            pass
        gate.open()
        assert pb.ModelInferResponse.FromString(future.result()).outputs
        with pytest.raises(grpc.FutureCancelledError):
            waiting.result()

"""The listener and its calls, as any gRPC client sees them: addresses, deadlines, cancellation, compression and goodbyes."""

import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import INFER, PATIENCE_SECONDS, Failure, begin, call, connect, failure_of, infer
from tests.gated import HELD, Gate, make_gated
from tests.servers import running
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.rpc import PortTaken

TEXT = pb.InferRequest(inputs={"text": pb.Input(text="two")})
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_a_unix_socket_is_listened_on_and_one_that_was_left_behind_is_taken_over(folder: Path) -> None:
    address = f"unix:{folder / 'socket'}"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(folder / "socket"))
    with running(folder, trust_code=True, listen=address) as server, connect(server.address) as channel:
        assert server.address == address
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)


@pytest.mark.parametrize("name", ["", "unix"], ids=["a port", "a unix socket"])
def test_what_another_server_listens_on_is_refused_and_stays_its_own(folder: Path, name: str) -> None:
    listen = f"unix:{folder / 'socket'}" if name else "127.0.0.1:0"
    with running(folder, trust_code=True, listen=listen) as server:
        with pytest.raises(PortTaken) as refused, running(folder, trust_code=True, listen=server.address):
            pass
        assert str(refused.value).startswith(f"cannot listen on {server.address}: another server does")
        with connect(server.address) as channel:
            assert isinstance(infer(channel, make_gated()), pb.InferResponse)


def test_every_address_of_a_host_is_listened_on(folder: Path) -> None:
    with running(folder, trust_code=True, listen="localhost:0") as server, connect(server.address) as channel:
        assert server.address.startswith("localhost:")
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)


@pytest.mark.parametrize(
    ("timeout", "give_up", "code"),
    [
        (1.0, lambda held: held.exception(), grpc.StatusCode.DEADLINE_EXCEEDED),
        (PATIENCE_SECONDS, lambda held: held.cancel(), grpc.StatusCode.CANCELLED),
    ],
    ids=["whose deadline passes", "that is cancelled"],
)
def test_a_call_gives_its_place_back(
    folder: Path, gate: Gate, timeout: float, give_up: Callable[[Any], object], code: grpc.StatusCode
) -> None:
    # The slack is so small that the caller's own clock is the first.
    settings: dict[str, Any] = {"max_concurrent_calls": 1, "breaker_stall_seconds": 1000.0, "reply_slack_seconds": 1e-9}
    with running(folder, trust_code=True, **settings) as server, connect(server.address) as channel:
        held = begin(channel, INFER, make_gated(HELD).SerializeToString(), timeout)
        gate.wait_until_reached()
        refused = infer(channel, TEXT)
        assert isinstance(refused, Failure)
        assert refused.reason == "OVERLOADED"
        give_up(held)
        assert held.code() is code
        while isinstance(found := infer(channel, TEXT), Failure):  # its member still stands at the gate
            assert found.reason == "OVERLOADED"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
def test_a_compressed_message_is_answered(folder: Path, compression: grpc.Compression) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        to_bytes: Any = channel.unary_unary(INFER)
        reply = to_bytes(make_gated().SerializeToString(), timeout=PATIENCE_SECONDS, compression=compression)
        assert pb.InferResponse.FromString(reply).prediction.classification.classes[0].label == "c"


def test_metadata_that_is_too_large_is_refused_and_the_next_call_answered(folder: Path) -> None:
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        to_bytes: Any = channel.unary_unary(INFER)
        large = [("note", "x" * 40_000)]
        failure = failure_of(lambda: to_bytes(make_gated().SerializeToString(), timeout=PATIENCE_SECONDS, metadata=large))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)


def test_a_server_that_drains_under_load_answers_every_call_that_has_come(folder: Path) -> None:
    ends: Counter[grpc.StatusCode | str] = Counter()
    started = threading.Semaphore(0)

    def ask(address: str) -> None:
        with connect(address) as channel:
            while True:
                found = call(channel, INFER, TEXT.SerializeToString())
                ends[found.code if isinstance(found, Failure) else "OK"] += 1
                started.release()
                if isinstance(found, Failure):
                    return

    with running(folder, trust_code=True) as server:
        callers = [threading.Thread(target=ask, args=(server.address,)) for _ in range(16)]
        for caller in callers:
            caller.start()
        for _ in range(10 * len(callers)):
            started.acquire()
        server.stop.set()
        for caller in callers:
            caller.join()
    # Each has gone on until there was no server to connect to; none was cut off.
    assert ends.keys() == {"OK", UNAVAILABLE}
    assert ends[UNAVAILABLE] == len(callers)

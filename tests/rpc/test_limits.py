"""Limits: whatever comes at once, the server takes in hand what it may, says so to the rest, and lives on."""

import gc
import re
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import INFER, PATIENCE_SECONDS, Failure, batch_infer, begin, call, connect, infer, read_failure, stream
from tests.gated import HELD, Gate, make_gated, tensor
from tests.processes import started
from tests.servers import ROOT, running
from twinfer import Client
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2
from twinfer_server.errors import TwinferError
from twinfer_server.types import Request

MEBIBYTE = 2**20


def large_row(first: float, size_bytes: int) -> pb.InferRequest:
    """Make a good row with pixels of about `size_bytes`."""
    width = size_bytes // 3000
    pixels = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[1000, width, 3], data=bytes(3000 * width))
    return make_gated(first, more={"image": pb.Input(tensor=pixels)})


def peak_bytes(process_id: int) -> int:
    """Read the most memory that a process has ever had resident."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kibibytes)


def test_a_message_over_the_limit_is_refused_and_one_below_is_not(folder: Path) -> None:
    with running(folder, trust_code=True, max_message_bytes=100_000) as server, connect(server.address) as channel:
        found = call(channel, INFER, bytes(100_001))
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max (100001 vs. 100000)" in found.details
        assert isinstance(infer(channel, large_row(0, 99_000)), pb.InferResponse)


def test_a_message_that_grows_when_it_is_unpacked_is_refused(folder: Path) -> None:
    with running(folder, trust_code=True, max_message_bytes=100_000) as server, connect(server.address) as channel:
        to_bytes: Any = channel.unary_unary(INFER)
        with pytest.raises(grpc.RpcError) as refused:
            to_bytes(bytes(10 * MEBIBYTE), timeout=PATIENCE_SECONDS, compression=grpc.Compression.Gzip)
        assert read_failure(refused.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)


CALLS, CONNECTIONS, CALLS_AT_ONCE, MESSAGE_BYTES = 120, 24, 8, 4 * MEBIBYTE
MEMORY_FACTOR = 6
"""A call in hand has its message as bytes, parsed, and as arrays."""


def test_a_flood_of_large_messages_takes_no_more_memory_than_the_calls_that_are_let_in(folder: Path, gate: Gate) -> None:
    flood = large_row(HELD, MESSAGE_BYTES - 1000).SerializeToString()
    settings = {"max_message_bytes": MESSAGE_BYTES, "max_concurrent_calls": CALLS_AT_ONCE, "max_in_flight_requests": CALLS_AT_ONCE}
    arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with started(folder, *arguments) as server, ExitStack() as stack:
        channels = [stack.enter_context(connect(server.address)) for _ in range(CONNECTIONS)]
        assert isinstance(infer(channels[0], large_row(0, 3000)), pb.InferResponse)
        before = peak_bytes(server.process.pid)
        answered = threading.Semaphore(0)
        calls = [begin(channels[number % CONNECTIONS], INFER, flood) for number in range(CALLS)]
        for under_way in calls:
            under_way.add_done_callback(lambda _: answered.release())
        gate.wait_until_reached()
        for _ in range(CALLS - CALLS_AT_ONCE):
            assert answered.acquire(timeout=PATIENCE_SECONDS)
        gate.open()
        codes = [under_way.code() for under_way in calls]
        grown = peak_bytes(server.process.pid) - before
        assert codes.count(grpc.StatusCode.OK) == CALLS_AT_ONCE
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == CALLS - CALLS_AT_ONCE
        # Together they are far more than what is allowed.
        allowed = MEMORY_FACTOR * CALLS_AT_ONCE * MESSAGE_BYTES
        print(f"grown by {grown / MEBIBYTE:.0f} MiB; allowed {allowed / MEBIBYTE:.0f}, sent {CALLS * len(flood) / MEBIBYTE:.0f}")
        assert allowed <= 0.5 * CALLS * len(flood)
        assert grown < allowed
        assert isinstance(infer(channels[0], make_gated()), pb.InferResponse)


def test_memory_that_large_messages_took_serves_the_next_ones(folder: Path) -> None:
    message = large_row(0, 60 * MEBIBYTE).SerializeToString()
    malloc = dict(re.findall(r"(MALLOC_\w+)=(\S+)", (ROOT / "service" / "Dockerfile").read_text(encoding="utf-8")))
    large = ("--set", f"max_message_bytes={64 * MEBIBYTE}")
    with started(folder, *large, env=malloc) as server, connect(server.address) as channel:
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        kept = []
        for _ in range(3):
            calls = [begin(channel, INFER, message) for _ in range(4)]
            assert {under_way.code() for under_way in calls} == {grpc.StatusCode.OK}
            assert isinstance(infer(channel, make_gated()), pb.InferResponse)  # after it nothing looks at the large ones
            kept.append(process.memory_info().rss - before)
        peak = peak_bytes(process.pid) - before
        print(f"kept {[size // MEBIBYTE for size in kept]} MiB, at the most {peak // MEBIBYTE}")
        assert peak > 400 * MEBIBYTE
        assert max(kept) < 0.5 * peak
        assert kept[-1] < kept[0] + 100 * MEBIBYTE


def check_a_retry(address: str, held: Any, gate: Gate) -> None:
    """A client that comes again when it is told to gets its answer, now that the call that is `held` may end."""
    with Client(address, attempts=5) as client, ThreadPoolExecutor(1) as pool:
        retried = pool.submit(client.infer, make_gated())
        gate.open()
        held.result()
        assert retried.result().label == "c"


def hold_and_be_refused(channel: grpc.Channel, gate: Gate, text: str) -> Any:
    """Begin a call that the gate holds, and return it once another has been refused with this text."""
    held = begin(channel, INFER, make_gated(HELD).SerializeToString())
    gate.wait_until_reached()
    found = infer(channel, make_gated())
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert text in found.details
    assert int(found.pushback) > 0
    return held


def test_a_row_too_many_is_told_when_to_come_again_and_then_gets_its_answer(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True, max_in_flight_requests=1) as server, connect(server.address) as channel:
        held = hold_and_be_refused(channel, gate, "1 requests are in flight; allowed: 1")
        check_a_retry(server.address, held, gate)


def test_a_call_too_many_is_told_when_to_come_again_and_a_full_server_is_not_ill(folder: Path, gate: Gate) -> None:
    settings: dict[str, Any] = {"max_concurrent_calls": 1, "metrics_listen": "127.0.0.1:0"}
    with running(folder, trust_code=True, **settings) as server, connect(server.address) as channel:
        held = hold_and_be_refused(channel, gate, "calls: found 2 at once; allowed: 1")
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as reply:
            assert 'twinfer_request_failures_total{code="RESOURCE_EXHAUSTED",reason="OVERLOADED"} 1.0' in reply.read().decode()
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        check_a_retry(server.address, held, gate)


def test_bytes_too_many_are_refused_while_a_small_row_still_fits(folder: Path, gate: Gate) -> None:
    with running(folder, trust_code=True, max_in_flight_bytes=3 * MEBIBYTE) as server, connect(server.address) as channel:
        held = begin(channel, INFER, large_row(HELD, 2 * MEBIBYTE).SerializeToString())
        gate.wait_until_reached()
        found = infer(channel, large_row(0, 2 * MEBIBYTE))
        assert isinstance(found, Failure)
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert "bytes are in flight" in found.details
        small = pb.InferRequest(inputs={"text": pb.Input(text="two")})
        assert isinstance(infer(channel, small), pb.InferResponse)
        gate.open()
        held.result()
        assert isinstance(infer(channel, large_row(0, 2 * MEBIBYTE)), pb.InferResponse)


def test_refused_rows_give_back_what_they_took(folder: Path) -> None:
    with (
        running(folder, trust_code=True, max_in_flight_requests=1, max_in_flight_bytes=10_000) as server,
        connect(server.address) as channel,
    ):
        for _ in range(3):
            for bad in (
                pb.InferRequest(),
                make_gated(options=pb.InferOptions(top_k=99)),
                make_gated(more={"image": pb.Input(image=b"x")}),
            ):
                found = infer(channel, bad)
                assert isinstance(found, Failure)
                assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(infer(channel, make_gated()), pb.InferResponse)


def test_rows_that_fail_leave_nothing_that_only_the_garbage_collector_finds(folder: Path) -> None:
    """What is left of them has their messages in memory, however large they are, and nothing counts those."""
    broken = [
        make_gated(more={"numbers": pb.Input(tensor=tensor([1.0], shape=[3]))}),
        make_gated(more={"nobody": pb.Input(text="x")}),
        make_gated(more={"image": pb.Input(image=b"x")}),
        make_gated(float("nan")),
        make_gated(options=pb.InferOptions(timeout=duration_pb2.Duration(nanos=1))),
    ]
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            assert isinstance(call(channel, INFER, b"\xff"), Failure)
            assert all(isinstance(infer(channel, each), Failure) for each in broken)
            assert isinstance(batch_infer(channel), Failure)
            assert isinstance(batch_infer(channel, make_gated(), *broken), pb.BatchInferResponse)
            messages = [pb.InferStreamRequest(request=each).SerializeToString() for each in broken]
            assert len(list(stream(channel, messages))) == len(broken)
            gc.collect()
            assert not [each for each in gc.garbage if isinstance(each, TwinferError | Request)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

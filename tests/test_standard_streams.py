"""Whoever reads what a server writes, however slowly, or not at all: calls, health and signals are as ever."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import INFER, PATIENCE_SECONDS, Failure, begin, connect, infer
from tests.gated import HELD, Gate, make_gated, write_gated
from tests.processes import COMMAND, environment
from twinfer import Client
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.standard_streams import MAX_WAITING_BYTES, UnwaitedStream

FAILING = -2.0
PIPE_BYTES = 4096
NOISY = """
    import ctypes

    def complain():
        print("to standard output", "o" * 5000)
        library = ctypes.CDLL(None)  # as code writes that is not Python
        for descriptor in (1, 2):
            library.write(descriptor, b"x" * 5000 + b"\\n", 5001)
        raise ValueError("e" * 100_000)
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble with a member that says much, and raises, when it is given FAILING."""
    folder = write_gated(tmp_path_factory.mktemp("noisy") / "gated")
    models = folder / "models.py"
    call = f"        if bool((numbers[:, 0] == {FAILING}).any()):\n            complain()\n        return numbers\n"
    models.write_text(
        "\n".join(map(str.strip, NOISY.splitlines()[:2])) + models.read_text().replace("        return numbers\n", call)
    )
    models.write_text(models.read_text() + "\n".join(line[4:] for line in NOISY.splitlines()[2:]) + "\n")
    return folder


class Pipe:
    """A pipe for a process to write to, as small as the system has them."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self) -> None:
        os.write(self.writer, bytes(PIPE_BYTES))

    def read_little(self) -> None:
        os.set_blocking(self.reader, False)
        with suppress(BlockingIOError):
            os.read(self.reader, 64)

    def close(self) -> None:
        for end in (self.reader, self.writer):
            with suppress(OSError):
                os.close(end)


@contextmanager
def serving(folder: Path, outputs: list[Pipe], *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server that writes to these pipes, and wait until it is ready, which it has no way to say there."""
    command = [*COMMAND, "serve", str(folder), "--listen", f"unix:{folder}/socket", "--trust-code", *arguments]
    with subprocess.Popen(command, stdout=outputs[0].writer, stderr=outputs[1].writer, env=environment()) as process:
        try:
            with Client(f"unix:{folder}/socket") as client:
                client.wait_until_ready(PATIENCE_SECONDS)
            yield process
        finally:
            process.kill()
            for output in outputs:
                output.close()


@pytest.mark.parametrize("readers", ["full", "slow", "gone"])
def test_nothing_waits_for_the_readers_of_its_output(noisy: Path, readers: str) -> None:
    outputs = [Pipe(), Pipe()]
    if readers == "full":
        for output in outputs:
            output.fill()
    with serving(noisy, outputs, "--set", "breaker_failures=0", "--set", "drain_seconds=10") as process:
        if readers == "gone":
            for output in outputs:
                output.close()
        with connect(f"unix:{noisy}/socket") as channel:
            for _ in range(100):
                found = infer(channel, make_gated(FAILING))
                assert isinstance(found, Failure)
                assert found.reason == "MEMBER_FAILED"
                if readers == "slow":
                    for output in outputs:
                        output.read_little()
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert isinstance(infer(channel, make_gated()), pb.InferResponse)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_full_pipes_keep_no_second_signal_from_ending_it(folder: Path, gate: Gate) -> None:
    outputs = [Pipe(), Pipe()]
    for output in outputs:
        output.fill()
    patient = ("--set", f"drain_seconds={100 * PATIENCE_SECONDS}", "--set", f"breaker_stall_seconds={100 * PATIENCE_SECONDS}")
    with serving(folder, outputs, *patient) as process, connect(f"unix:{folder}/socket") as channel:
        held = begin(channel, INFER, make_gated(HELD).SerializeToString())
        gate.wait_until_reached()
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert [*health][1:] == []  # it ends: the first signal has been taken note of
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGINT
        assert held.code() is grpc.StatusCode.UNAVAILABLE


def test_what_is_read_later_is_what_was_written(folder: Path) -> None:
    outputs = [Pipe(), Pipe()]
    outputs[0].fill()
    with serving(folder, outputs) as process:
        read = bytearray()
        while not read.endswith(b"ready\n"):
            read += os.read(outputs[0].reader, PIPE_BYTES)
        assert read.startswith(bytes(PIPE_BYTES) + b"listening on unix:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


STUCK = """
import asyncio, signal, threading
from twinfer_server.runtime import StopSignals, run_loop

async def live(signals):
    stopping = signals.stopping()
    print("stuck", flush=True)
    threading.Event().wait()

run_loop(live(StopSignals()))
"""


def test_a_second_signal_ends_a_process_whose_event_loop_stands_still() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 128 + signal.SIGTERM


# --- one stream -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def drain(pipe: Pipe, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        found += os.read(pipe.reader, PIPE_BYTES)
    return bytes(found)


def test_lines_are_written_whole_and_in_order_and_what_does_not_fit_is_counted(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    stream = UnwaitedStream("standard error", pipe.writer)
    lines = [b"%07d %s\n" % (number, b"x" * 999) for number in range(2000)]
    for line in lines:
        assert stream.write(line) == len(line)
    fitting = MAX_WAITING_BYTES // len(lines[0])
    assert len(lines) - fitting - 5 <= stream.dropped <= len(lines) - fitting
    kept = lines[: len(lines) - stream.dropped]
    assert drain(pipe, sum(map(len, kept))) == b"".join(kept)
    assert stream.mark().wait(PATIENCE_SECONDS)
    assert [record.getMessage() for record in caplog.records] == [
        f"{stream.dropped} lines dropped, which standard error could not take"
    ]


def test_what_cannot_be_written_is_dropped_and_counted() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    stream = UnwaitedStream("standard error", full)
    stream.write(b"one\n")
    assert stream.mark().wait(PATIENCE_SECONDS)
    assert stream.dropped == 1
    os.close(full)


def test_a_pipe_that_other_processes_share_waits_for_them_as_before(pipe: Pipe) -> None:
    shared = os.dup(pipe.writer)
    UnwaitedStream("standard error", pipe.writer)
    assert (os.get_blocking(pipe.writer), os.get_blocking(shared)) == (False, True)
    pipe.fill()
    with pytest.raises(BlockingIOError):
        os.write(pipe.writer, b"as a library does that is not Python")
    threading.Thread(target=drain, args=(pipe, 1), daemon=True).start()
    assert os.write(shared, b"as another process does") == 23
    os.close(shared)

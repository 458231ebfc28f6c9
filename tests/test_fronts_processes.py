"""Front processes from outside: answers like one process's, and what is lost when one of the processes is killed."""

import os
import resource
import select
import signal
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc

from tests.calls import INFER, PATIENCE_SECONDS, Failure, begin, connect, infer, read_failure
from tests.gated import HELD, Gate, row
from tests.processes import ServerProcess, run, started
from tests.servers import DIGITS
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.demo import read_rows, running_server

# A member that a test holds is not to be switched off, nor waited for by health.
PATIENT = ("--set", "breaker_stall_seconds=1000", "--set", "stuck_seconds=1000")
CONNECTIONS = 16
"""So many that each of two processes has some: the kernel deals them out by chance."""


def children_of(pid: int) -> list[int]:
    """Whom a process has started, on whichever thread."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def nursery_of(server: ServerProcess) -> int:
    """The process that the fronts are forked from."""
    (nursery,) = children_of(server.process.pid)
    return nursery


def fronts_of(server: ServerProcess) -> list[int]:
    """The processes that accept calls."""
    return children_of(nursery_of(server))


def shared_memories_of(server: ServerProcess) -> int:
    """Count what the device process has mapped of the memory that it shares with fronts."""
    return Path(f"/proc/{server.process.pid}/maps").read_text().count("memfd:twinfer")


def replace_front(server: ServerProcess) -> None:
    """Kill the only front, and wait until there is another."""
    (killed,) = fronts_of(server)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: fronts_of(server) not in ([], [killed]))


def wait_for_end(pids: list[int]) -> None:
    """Wait until processes that are not this one's children have ended."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], PATIENCE_SECONDS)
        os.close(handle)
        assert ended, f"process {pid} is still there"


def metrics_of(server: ServerProcess) -> dict[str, float]:
    """What the exporter says."""
    address = next(line for line in server.said if line.startswith("metrics on ")).removeprefix("metrics on ")
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        lines = [line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        pass


def test_answers_are_those_of_one_process() -> None:
    rows = read_rows(DIGITS)[:20]
    answers = []
    for workers in ("0", "2"):
        with (
            running_server(DIGITS, arguments=["--set", "cache_dir=", "--workers", workers]) as address,
            connect(address) as channel,
        ):
            found = []
            for number, held_out in enumerate(rows):
                options = pb.InferOptions(member_predictions=True, explain=number % 2 == 0, top_k=3)
                request = pb.InferRequest(request_id=str(number), options=options)
                request.inputs["image"].image = held_out.image.read_bytes()
                if number % 3:
                    request.inputs["text"].text = held_out.text
                answer = infer(channel, request)
                assert isinstance(answer, pb.InferResponse), answer
                answer.ClearField("timings")
                for member in answer.members:
                    for field in ("device_time", "alone_time"):
                        member.ClearField(field)
                found.append(answer)
            bad = infer(channel, pb.InferRequest(inputs={"image": pb.Input(image=b"none")}))
            assert isinstance(bad, Failure)
            answers.append((found, bad))
    assert answers[0] == answers[1]


def test_a_front_that_is_killed_loses_its_own_calls_and_is_started_again(folder: Path, gate: Gate) -> None:
    arguments = (*PATIENT, "--workers", "2", "--metrics-listen", "127.0.0.1:0")
    with started(folder, *arguments) as server, ExitStack() as stack:
        killed, other = fronts_of(server)
        channels = [stack.enter_context(connect(server.address)) for _ in range(CONNECTIONS)]
        calls = [begin(channel, INFER, row(HELD).SerializeToString()) for channel in channels]
        gate.wait_for_somebody()
        wait_until(lambda: metrics_of(server)["twinfer_rows_in_hand"] == CONNECTIONS)

        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: metrics_of(server)["twinfer_rows_in_hand"] < CONNECTIONS)
        gate.open()
        failures = [read_failure(failure) for call in calls if (failure := call.exception())]
        assert 0 < len(failures) < CONNECTIONS
        assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}

        wait_until(lambda: len(set(fronts_of(server)) - {killed}) == 2)
        fronts = fronts_of(server)
        assert other in fronts
        assert all(isinstance(infer(channel, row()), pb.InferResponse) for channel in channels)
        # A front tells what became of a row after it has answered.
        wait_until(lambda: metrics_of(server)['twinfer_rows_total{code="OK",reason=""}'] == 2 * CONNECTIONS - len(failures))
        metrics = metrics_of(server)
        assert metrics["twinfer_rows_in_hand"] == 0
        assert metrics['twinfer_rows_total{code="CANCELLED",reason="CANCELLED"}'] == len(failures)

        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        wait_for_end(fronts)
    assert f"the front process {killed} has ended" in server.log.read_text()


def test_a_front_that_cannot_be_started_again_is_when_it_can(folder: Path) -> None:
    with started(folder, "--workers", "1") as server:
        (killed,) = fronts_of(server)
        allowed = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: "Too many open files" in server.log.read_text())
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, allowed)
        with connect(server.address) as channel:
            wait_until(lambda: isinstance(infer(channel, row()), pb.InferResponse))
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "drain_seconds are over" not in server.log.read_text()


def test_the_memory_that_a_front_shared_goes_with_it(folder: Path) -> None:
    with started(folder, "--workers", "1") as server:
        mapped = shared_memories_of(server)
        assert mapped
        for _ in range(2):
            replace_front(server)
            with connect(server.address) as channel:
                # A thread that waits may still look at the last flight that the killed front had a row in.
                wait_until(lambda: isinstance(infer(channel, row()), pb.InferResponse) and shared_memories_of(server) == mapped)


def test_fronts_are_started_again_even_where_the_process_that_they_are_forked_from_is_gone(folder: Path) -> None:
    with started(folder, "--workers", "2") as server:
        for pid in (nursery_of(server), *fronts_of(server)):
            os.kill(pid, signal.SIGKILL)
        with connect(server.address) as channel:
            wait_until(lambda: isinstance(infer(channel, row()), pb.InferResponse))
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_when_the_device_process_is_killed_calls_fail_at_once_and_no_front_is_left(folder: Path, gate: Gate) -> None:
    with started(folder, *PATIENT, "--workers", "2") as server, connect(server.address) as channel:
        fronts = [nursery_of(server), *fronts_of(server)]
        held = begin(channel, INFER, row(HELD).SerializeToString())
        gate.wait_for_somebody()
        server.process.kill()
        failure = read_failure(held.exception())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert "the process that owns the device has ended" in failure.details
        assert server.wait() == -signal.SIGKILL
        wait_for_end(fronts)
    assert "the process that owns the device has ended; this front ends, too" in server.log.read_text()


def test_a_port_that_somebody_listens_on_is_not_shared_with_them(folder: Path) -> None:
    """Not even where the other one is such a service itself, whose processes share theirs."""
    with started(folder, "--workers", "1") as server:
        second = run("serve", str(folder), "--listen", server.address, "--workers", "1", "--trust-code")
    assert second.returncode == 1
    assert "another server has the port" in second.stderr or "Address already in use" in second.stderr

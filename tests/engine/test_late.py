"""A member that is stuck: it holds its own stream and nothing else, and every caller is answered in time."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.models import Opinion, chance, first_chance, number, states, write_members
from tests.servers import running
from twinfer import AsyncClient, Client, MemberState, Response, TwinferError
from twinfer.errors import MemberLate, Stage
from twinfer.inputs import Inputs
from twinfer.requests import make_request

CALLERS = 32
DEADLINE_SECONDS = 0.5
TIMES_HEALTHY = 10
"""On a machine so busy that the same calls take long with nobody stuck, the deadline is so many times that."""
ORDERS = {"first": ("stuck", "free"), "second": ("free", "stuck")}


class Pair:
    """Two opinions, one of which a test holds."""

    def __init__(self, folder: Path, execution: str, order: Sequence[str]) -> None:
        self.stuck, self.free = Opinion(), Opinion()
        models = {"stuck": self.stuck, "free": self.free}
        self.folder = write_members(
            folder, {name: models[name] for name in order}, f'execution = "{execution}"', max_batch_size=CALLERS
        )


@dataclass(frozen=True, slots=True)
class Served:
    """A pair, and where it is served."""

    stuck: Opinion
    address: str


@pytest.fixture(scope="module", params=["serial", "streams"])
def execution(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=ORDERS.values(), ids=[f"stuck_member_{order}" for order in ORDERS])
def served(request: pytest.FixtureRequest, execution: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = Pair(tmp_path_factory.mktemp("pair"), execution, request.param)
    # The default margin is for a server that need not share its cores with its callers and with other tests.
    # However long the tests hold the member, it is late and not off.
    with running(pair.folder, trust_code=True, breaker_stall_seconds=3600.0) as server:
        yield Served(pair.stuck, server.address)


@pytest.fixture
def pair(served: Served) -> Served:
    """The served pair, with nothing under way."""
    with Client(served.address) as client:
        assert not client.infer(inputs(0), policy="require_all", timeout=60).degraded
    return served


def inputs(x: float) -> Inputs:
    return {"stuck": number(-x), "free": number(x)}


async def ask_together(client: AsyncClient, deadline_seconds: float) -> list[Response]:
    """Make all the callers' calls at once, each with its own number; raises if one of them fails."""
    calls = [client.infer(inputs(caller / CALLERS), timeout=deadline_seconds, policy="best_effort") for caller in range(CALLERS)]
    return await asyncio.gather(*calls)


async def find_deadline(client: AsyncClient) -> float:
    """Give the callers' deadline, in seconds: DEADLINE_SECONDS unless this machine has better things to do."""
    longest = 0.0
    for _ in range(4):
        began = time.monotonic()
        await ask_together(client, deadline_seconds=60)
        longest = max(longest, time.monotonic() - began)
    return max(DEADLINE_SECONDS, TIMES_HEALTHY * longest)


def test_every_caller_is_answered_before_the_deadline_and_the_server_recovers(pair: Served) -> None:
    async def callers(address: str) -> None:
        async with AsyncClient(address) as client:
            deadline = await find_deadline(client)
            for _ in range(3):  # more often than there are sets of buffers: one that stays taken would be missed
                with pair.stuck.held():
                    patient = asyncio.create_task(client.infer(inputs(0.5), timeout=60, policy="require_all"))
                    await asyncio.to_thread(pair.stuck.entered.wait)
                    for _ in range(3):
                        for caller, answer in enumerate(await ask_together(client, deadline)):
                            assert states(answer) == {"stuck": MemberState.LATE, "free": MemberState.OK}
                            assert answer.degraded
                            assert first_chance(answer) == pytest.approx(chance(caller / CALLERS), abs=1e-6)
                            assert answer.members["free"].weight == pytest.approx(1)
                            assert isinstance(answer.members["stuck"].error, MemberLate)
                    assert not patient.done()
                assert first_chance(await patient) == pytest.approx(chance(0.5, -0.5), abs=1e-6)
                for answer in await ask_together(client, deadline_seconds=60):
                    assert not answer.degraded
                    assert states(answer) == {"stuck": MemberState.OK, "free": MemberState.OK}

    asyncio.run(callers(pair.address))


def test_callers_that_come_before_it_is_known_are_answered_too(pair: Served) -> None:
    async def callers(address: str) -> None:
        async with AsyncClient(address) as client:
            deadline = await find_deadline(client)
            with pair.stuck.held():
                for answer in await ask_together(client, deadline):
                    assert states(answer) == {"stuck": MemberState.LATE, "free": MemberState.OK}

    asyncio.run(callers(pair.address))


def test_under_require_all_the_status_names_the_late_member(pair: Served) -> None:
    # The request's own timeout is shorter than the call's deadline, so the status is always the server's.
    request = make_request(inputs(0.5), timeout=0.25, policy="require_all")
    with Client(pair.address) as client, pair.stuck.held():
        for _ in range(3):  # in the stuck batch, behind it, and when it is known
            with pytest.raises(MemberLate) as failure:
                client.infer(request, timeout=60)
            assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert failure.value.member == "stuck"
            assert failure.value.stage is Stage.MEMBER


def test_requests_that_have_only_the_free_members_input_do_not_notice(pair: Served) -> None:
    async def callers(address: str) -> None:
        async with AsyncClient(address) as client:
            patient = asyncio.create_task(client.infer(inputs(0.5), timeout=60))
            await asyncio.to_thread(pair.stuck.entered.wait)
            for _ in range(5):
                answer = await client.infer({"free": number(0.25)}, timeout=60, policy="best_effort")
                assert states(answer) == {"stuck": MemberState.NO_INPUT, "free": MemberState.OK}
                assert not answer.degraded
            assert not patient.done()
            pair.stuck.release()
            assert not (await patient).degraded

    with pair.stuck.held():
        asyncio.run(callers(pair.address))


def test_requests_that_have_only_the_stuck_members_input_end_with_its_name(pair: Served) -> None:
    request = make_request({"stuck": number(0.5)}, timeout=0.25, policy="best_effort")
    with Client(pair.address) as client, pair.stuck.held():
        for _ in range(3):
            with pytest.raises(MemberLate) as failure:
                client.infer(request, timeout=60)
            assert failure.value.member == "stuck"


def test_health_turns_not_serving_while_a_member_stands_still_and_back(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "streams", ORDERS["first"])
    with (
        running(pair.folder, trust_code=True, stuck_seconds=0.2) as server,
        Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(1) as caller,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with pair.stuck.held():
            patient = caller.submit(client.infer, inputs(0.5), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert not patient.result().degraded
        watch.cancel()


STICKING = """
    import threading
    import torch

    def sticking():
        def model(x):
            if x.max() > 100:
                print("stuck", flush=True)
                threading.Event().wait()
            return torch.cat([x, -x], dim=1)
        return model
"""


def test_a_process_with_a_stuck_member_ends_on_sigterm_with_exit_code_0(tmp_path: Path, execution: str) -> None:
    folder = write_members(tmp_path, {"stuck": "python:model.py:sticking", "free": Opinion()}, f'execution = "{execution}"')
    (folder / "model.py").write_text(dedent(STICKING), encoding="utf-8")
    (folder / "ensemble.toml").write_text(
        re.sub('"python:tests.*"', '"python:model.py:sticking"', (folder / "ensemble.toml").read_text())
    )
    serve = [sys.executable, "-c", "from twinfer.cli import main; main()", "serve", str(folder), "--listen", "127.0.0.1:0"]
    settings = ["--trust-code", "--set", "drain_seconds=3", "--set", "log_level=error"]
    with subprocess.Popen([*serve, *settings], stdout=subprocess.PIPE, text=True) as process, ThreadPoolExecutor(2) as callers:
        assert process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("listening on ")).split()[-1]
        assert next(process.stdout) == "ready\n"
        with Client(address, attempts=1) as client:
            impatient = make_request(inputs(-1000), timeout=1.0, policy="best_effort")
            calls = [callers.submit(client.infer, impatient, timeout=60)]
            assert next(process.stdout) == "stuck\n"
            calls.append(callers.submit(client.infer, inputs(-1000), timeout=60))
            process.send_signal(signal.SIGTERM)
            assert states(calls[0].result()) == {"stuck": MemberState.LATE, "free": MemberState.OK}
            with pytest.raises(TwinferError) as failure:
                calls[1].result()
            assert failure.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert process.wait() == 0

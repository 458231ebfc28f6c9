"""Poison: requests at which a member raises, or answers NaN, harm nobody else, and do not have the member taken out."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from torch import Tensor

from tests.models import Opinion, chance, first_chance, number, states, write_members
from tests.servers import count, read_metrics, running
from twinfer import AsyncClient, Client, Response, make_request
from twinfer.errors import MemberFailed, Reason, TwinferError
from twinfer.inputs import Value
from twinfer.v1 import ensemble_pb2

POISON, NAN = 50.0, -1000.0
MOST = 16
BREAKERS: dict[str, Any] = {"breaker_window": 8, "breaker_failures": 4, "breaker_retry_seconds": 3600.0}


class Picky(Opinion):
    """An opinion that raises on a batch with an x of POISON or more, before it comes to its gate."""

    def forward(self, x: Tensor) -> Tensor:
        if (x >= POISON).any():
            raise ValueError("no such number")
        return super().forward(x)


@dataclass(frozen=True, slots=True)
class Served:
    """A served pair of a picky member and an easy one."""

    picky: Picky
    address: str
    metrics_address: str
    client: Client

    def ask(self, x: float, easy: float = 0.5, policy: str = "best_effort") -> Response:
        return self.client.infer(inputs(x, easy), policy=policy, timeout=60)  # type: ignore[arg-type]

    def check_on(self) -> None:
        """Check that all members take part, and that no breaker has ever opened."""
        members = self.client.describe().members
        assert {member.breaker_state for member in members} == {ensemble_pb2.BREAKER_STATE_CLOSED}
        metrics = read_metrics(self.metrics_address)
        assert [count(metrics, "twinfer_member_breaker_opened_total", member=member.name) for member in members] == [0.0, 0.0]
        assert states(self.ask(0.25)) == {"picky": "OK", "easy": "OK"}


def inputs(x: float, easy: float = 0.5) -> Mapping[str, Value]:
    return {"picky": number(x), "easy": number(easy)}


@contextmanager
def serving(folder: Path, head: str, tail: str = "") -> Iterator[Served]:
    picky = Picky()
    write_members(folder, {"picky": picky, "easy": Opinion()}, head, tail, max_batch_size=MOST)
    with (
        running(folder, trust_code=True, metrics_listen="127.0.0.1:0", **BREAKERS) as server,
        Client(server.address, attempts=1) as client,
    ):
        yield Served(picky, server.address, server.metrics_address, client)


@pytest.fixture(scope="module", params=["serial", "streams"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("poison"), f'execution = "{request.param}"') as served:
        yield served


@pytest.mark.parametrize("policy", ["best_effort", "require_all"])
def test_poison_among_others_fails_alone(served: Served, policy: str) -> None:
    xs = [POISON if n % 10 == 3 else n / 64 for n in range(3 * MOST)]
    outcomes = served.client.infer_batch([make_request(inputs(x), policy=policy) for x in xs], timeout=60)  # type: ignore[arg-type]
    for x, outcome in zip(xs, outcomes, strict=True):
        if x < POISON:
            assert not outcome.response.degraded
            assert first_chance(outcome.response) == pytest.approx(chance(x, 0.5), abs=1e-6)
        elif policy == "best_effort":
            assert states(outcome.response) == {"picky": "FAILED", "easy": "OK"}
            assert first_chance(outcome.response) == pytest.approx(chance(0.5), abs=1e-6)
        else:
            assert isinstance(outcome.error, MemberFailed)
            assert (outcome.error.code, outcome.error.member) == (grpc.StatusCode.INTERNAL, "picky")
            assert "on the input of this request alone the member raised ValueError; the server's log has it" in outcome.error.text
    served.check_on()


@pytest.mark.parametrize(
    ("x", "reason"), [(POISON, Reason.MEMBER_FAILED), (NAN, Reason.NOT_FINITE)], ids=["it raises", "it answers NaN"]
)
def test_nothing_but_poison_takes_no_member_out(served: Served, x: float, reason: Reason) -> None:
    for _ in range(3 * BREAKERS["breaker_window"]):
        with pytest.raises(TwinferError) as failure:
            served.ask(x, policy="require_all")
        assert failure.value.reason is reason
    served.check_on()


def test_what_was_computed_again_is_counted(served: Served) -> None:
    def computed_again() -> float:
        return count(read_metrics(served.metrics_address), "twinfer_member_retries_total", member="picky")

    before = computed_again()
    assert states(served.ask(POISON))["picky"] == "FAILED"
    while computed_again() == before:  # it is counted a little after the answer
        pass


def test_a_request_that_cannot_wait_for_the_halves_is_answered_from_the_other_member(served: Served) -> None:
    asked = [make_request(inputs(x), policy="best_effort", timeout=2.0) for x in (0.25, POISON)]
    with served.picky.held():  # the half without the poison comes to the gate
        for outcome in served.client.infer_batch(asked, timeout=60):
            assert states(outcome.response) == {"picky": "LATE", "easy": "OK"}
            assert first_chance(outcome.response) == pytest.approx(chance(0.5), abs=1e-6)
        assert served.picky.entered.is_set()
    served.check_on()


def test_callers_that_go_away_while_halves_are_computed_leave_nothing_behind(served: Served) -> None:
    async def callers() -> None:
        async with AsyncClient(served.address) as client:
            for _ in range(3):  # more often than there are sets of buffers
                with served.picky.held():
                    call = asyncio.create_task(
                        client.infer_batch([make_request(inputs(x)) for x in (POISON, 0.25, 0.5, POISON)], timeout=60)
                    )
                    await asyncio.to_thread(served.picky.entered.wait)
                    call.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await call

    asyncio.run(callers())
    served.check_on()


def ask_cascade(served: Served, xs: list[float]) -> list[Response]:
    asked = [make_request(inputs(x), policy="best_effort") for x in xs]
    return [outcome.response for outcome in served.client.infer_batch(asked, timeout=60)]


def test_poison_for_a_cascades_first_member_is_answered_by_the_others(tmp_path: Path) -> None:
    with serving(tmp_path, "", '[cascade]\nfirst = "picky"\ngate = 0.9') as served:
        sure, poison, unsure = ask_cascade(served, [3.0, POISON, 0.1])
        assert [states(answer) for answer in (sure, poison, unsure)] == [
            {"picky": "OK", "easy": "SKIPPED"}, {"picky": "FAILED", "easy": "OK"}, {"picky": "OK", "easy": "OK"},
        ]  # fmt: skip
        for answer, expected in ((sure, chance(3.0)), (poison, chance(0.5)), (unsure, chance(0.1, 0.5))):
            assert first_chance(answer) == pytest.approx(expected, abs=1e-6)
        assert {member.breaker_state for member in served.client.describe().members} == {ensemble_pb2.BREAKER_STATE_CLOSED}

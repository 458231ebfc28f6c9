"""Circuit breakers: a member that fails or stalls is taken out, tried, and takes part again; operators can do it by hand."""

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from tests.calls import connect, failure_of
from tests.models import Opinion, chance, number, states, write_members
from tests.servers import running
from twinfer import Client, Response, TwinferError
from twinfer.cli import app
from twinfer.errors import MemberOff, Stage
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc as admin_grpc
from twinfer.v1 import ensemble_pb2
from twinfer_server.engine.circuit_breaker import BreakerState, CircuitBreaker
from twinfer_server.settings import ServerSettings

CLOSED, OPEN, DISABLED = (f"BREAKER_STATE_{name}" for name in ("CLOSED", "OPEN", "DISABLED"))
SERVICE = "twinfer.v1.EnsembleService"
NEVER = 3600.0


@dataclass(frozen=True, slots=True)
class Served:
    """A served pair of opinions."""

    sick: Opinion
    well: Opinion
    client: Client
    admin: Any
    health: Any
    metrics_address: str
    admin_address: str

    def ask(self, policy: Literal["require_all", "best_effort"] = "best_effort", **options: Any) -> Response:
        return self.client.infer({"sick": number(1.0), "well": number(0.5)}, policy=policy, **options)

    def state_of(self, name: str) -> str:
        member = next(member for member in self.client.describe().members if member.name == name)
        assert bool(member.breaker_reason) == (member.breaker_state != ensemble_pb2.BREAKER_STATE_CLOSED)
        return ensemble_pb2.BreakerState.Name(member.breaker_state)

    def set(self, name: str, state: "ensemble_pb2.BreakerState") -> ensemble_pb2.Member:
        reply: admin_pb.SetMemberResponse = self.admin.SetMember(admin_pb.SetMemberRequest(member=name, breaker_state=state))
        return reply.member

    def watch(self, service: str) -> Iterator[int]:
        for reply in self.health.Watch(health_pb2.HealthCheckRequest(service=service)):
            yield reply.status

    def metric(self, line: str) -> bool:
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as reply:
            return line in reply.read().decode().splitlines()


@contextmanager
def serving(folder: Path, policy: str = "best_effort", **settings: Any) -> Iterator[Served]:
    sick, well = Opinion(), Opinion()
    write_members(folder, {"sick": sick, "well": well}, f'policy = "{policy}"\nexecution = "streams"')
    addresses = {"admin_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    with (
        running(folder, trust_code=True, **({"breaker_retry_seconds": NEVER} | addresses | settings)) as server,
        Client(server.address, attempts=1) as client,
        connect(server.admin_address) as admin,
        connect(server.address) as health,
    ):
        yield Served(
            sick,
            well,
            client,
            admin_grpc.EnsembleAdminServiceStub(admin),
            health_pb2_grpc.HealthStub(health),
            server.metrics_address,
            server.admin_address,
        )


def until(is_so: Callable[[], bool]) -> None:
    """Look until it is so; the looking makes something happen."""
    next(None for _ in itertools.count() if is_so())


# --- the breaker by itself ------------------------------------------------------------------------------------------------


def make_breaker(**settings: Any) -> CircuitBreaker:
    return CircuitBreaker("one", ServerSettings(**({"breaker_window": 4, "breaker_failures": 2} | settings)))


def test_failures_within_the_window_open_it() -> None:
    breaker = make_breaker()
    for failure in ("it raised", "", "", "", "it raised"):  # never two among four
        breaker.note_batch(failure)
    assert breaker.is_closed
    breaker.note_batch("it raised")
    assert breaker.reading.state is BreakerState.OPEN
    assert "failed in 2 of its last 4 batches, the last time because it raised" in breaker.reading.reason


def test_failures_never_open_it_where_none_are_counted() -> None:
    breaker = make_breaker(breaker_failures=0)
    for _ in range(100):
        breaker.note_batch("it raised")
    assert breaker.is_closed


def test_a_trial_that_goes_well_closes_it() -> None:
    breaker = make_breaker()
    breaker.open("tried")
    breaker.note_trial("")
    assert breaker.is_closed
    assert not breaker.reading.reason
    breaker.note_batch("it raised")
    assert breaker.is_closed


def test_trials_that_fail_come_less_often_and_at_least_once_a_minute() -> None:
    breaker = make_breaker(breaker_retry_seconds=8.0)
    breaker.open("tried")
    waits = []
    for _ in range(5):
        wait = breaker.seconds_to_trial(0.0)
        assert wait is not None
        waits.append(wait)
        breaker.note_trial("no")
    steps = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert steps == pytest.approx([8, 16, 28, 0], abs=1.0)


def test_a_member_that_only_trials_get_right_is_tried_less_often_until_it_has_held() -> None:
    breaker = make_breaker(breaker_retry_seconds=8.0)
    waits = []
    for batches in (0, 3, 4, 0):  # that go well before it opens again; the window is 4
        for _ in range(batches):
            breaker.note_batch("")
        breaker.open("tried")
        waits.append(breaker.seconds_to_trial(time.monotonic()))
        breaker.note_trial("")
    assert waits == pytest.approx([8, 16, 8, 16], abs=1.0)


def test_enabled_again_by_hand_it_has_nothing_held_against_it() -> None:
    breaker = make_breaker()
    breaker.note_batch("it raised")
    breaker.set_by_hand(is_enabled=True)
    breaker.note_batch("it raised")
    assert breaker.is_closed


def test_disabled_twice_it_is_off_since_the_first_time() -> None:
    breaker = make_breaker()
    breaker.set_by_hand(is_enabled=False)
    reading = breaker.reading
    breaker.set_by_hand(is_enabled=False)
    assert breaker.reading is reading


def test_an_operator_wins_over_trials() -> None:
    breaker = make_breaker()
    breaker.open("tried")
    breaker.set_by_hand(is_enabled=False)
    breaker.note_trial("")
    assert breaker.reading.state is BreakerState.DISABLED
    assert breaker.seconds_to_trial(1e12) is None
    breaker.set_by_hand(is_enabled=True)
    assert breaker.is_closed


# --- served ---------------------------------------------------------------------------------------------------------------


def test_a_member_that_keeps_failing_is_taken_out_and_the_answers_say_so(tmp_path: Path) -> None:
    with serving(tmp_path, breaker_failures=3, breaker_window=5) as served:
        served.sick.error = RuntimeError("broken")
        for _ in range(3):
            assert states(served.ask()) == {"sick": "FAILED", "well": "OK"}
        until(lambda: states(served.ask())["sick"] == "OFF")
        calls = len(served.sick.batches)
        answer = served.ask()
        assert answer.degraded
        assert isinstance(answer.members["sick"].error, MemberOff)
        assert "failed in 3 of its last 3 batches" in answer.members["sick"].error.text
        assert answer.prediction.probability == pytest.approx(chance(0.5), abs=1e-6)
        assert len(served.sick.batches) == calls
        assert served.state_of("sick") == OPEN
        assert served.state_of("well") == CLOSED
        until(lambda: served.metric('twinfer_member_breaker_state{member="sick",state="OPEN"} 1.0'))
        assert served.metric('twinfer_member_breaker_opened_total{member="sick"} 1.0')
        with pytest.raises(MemberOff) as failure:
            served.ask(policy="require_all")
        assert failure.value.member == "sick"
        assert failure.value.code is grpc.StatusCode.UNAVAILABLE


def test_a_member_that_answers_nan_only_is_taken_out(tmp_path: Path) -> None:
    with serving(tmp_path, breaker_failures=3, breaker_window=5) as served:
        served.sick.is_sick = True
        until(lambda: states(served.ask())["sick"] == "OFF")
        assert "no output was finite" in next(m.breaker_reason for m in served.client.describe().members if m.name == "sick")


def test_a_member_that_answers_again_takes_part_again_without_a_callers_help(tmp_path: Path) -> None:
    with serving(tmp_path, breaker_failures=2, breaker_window=5, breaker_retry_seconds=0.2) as served:
        watch = served.watch(f"{SERVICE}/sick")
        assert next(watch) == health_pb2.HealthCheckResponse.SERVING
        served.sick.error = RuntimeError("broken")
        until(lambda: states(served.ask())["sick"] == "OFF")
        assert next(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
        served.sick.error = None
        assert next(watch) == health_pb2.HealthCheckResponse.SERVING  # only a trial can have done it
        assert states(served.ask()) == {"sick": "OK", "well": "OK"}


def test_a_trial_that_fails_leaves_it_off_and_fails_no_request(tmp_path: Path) -> None:
    with serving(tmp_path, breaker_failures=2, breaker_window=5, breaker_retry_seconds=0.05) as served:
        served.sick.error = RuntimeError("broken")
        until(lambda: states(served.ask())["sick"] == "OFF")
        calls = len(served.sick.batches)
        until(lambda: states(served.ask())["sick"] == "OFF" and len(served.sick.batches) >= calls + 3)
        assert served.state_of("sick") == OPEN


def test_a_member_that_stalls_is_taken_out_and_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path, breaker_stall_seconds=0.3, breaker_retry_seconds=0.1) as served:
        with served.sick.held():
            assert states(served.ask(timeout=1.0))["sick"] == "LATE"
            until(lambda: states(served.ask(timeout=1.0))["sick"] == "OFF")
            assert "its stream has been behind for" in next(
                member.breaker_reason for member in served.client.describe().members if member.name == "sick"
            )
        until(lambda: states(served.ask())["sick"] == "OK")
        assert served.state_of("sick") == CLOSED


def test_an_operator_disables_a_member_and_enables_it(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        member = served.set("sick", ensemble_pb2.BREAKER_STATE_DISABLED)
        assert (member.name, member.breaker_state) == ("sick", ensemble_pb2.BREAKER_STATE_DISABLED)
        assert "an operator has disabled it" in member.breaker_reason
        assert states(served.ask()) == {"sick": "OFF", "well": "OK"}
        with pytest.raises(MemberOff):
            served.ask(policy="require_all")
        assert served.set("sick", ensemble_pb2.BREAKER_STATE_CLOSED).breaker_state == ensemble_pb2.BREAKER_STATE_CLOSED
        assert states(served.ask(policy="require_all")) == {"sick": "OK", "well": "OK"}


def test_what_a_member_that_is_off_is_needed_for_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.set("sick", ensemble_pb2.BREAKER_STATE_DISABLED)
        with pytest.raises(MemberOff) as failure:
            served.client.infer(
                {"sick": number(1.0), "well": number(1.0).repeat(2)}, policy="require_all"
            )  # of no shape that it takes
        assert (failure.value.member, failure.value.stage) == ("sick", Stage.MEMBER)
        assert "an operator has disabled it" in failure.value.text


def test_a_call_that_no_member_is_left_to_answer_is_unavailable_and_says_why_of_each(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        for name in ("sick", "well"):
            served.set(name, ensemble_pb2.BREAKER_STATE_DISABLED)
        with pytest.raises(TwinferError) as failure:
            served.ask()
        assert failure.value.code is grpc.StatusCode.UNAVAILABLE
        assert isinstance(failure.value, MemberOff)
        assert all(f"{name}: the member is off since" in failure.value.text for name in ("sick", "well"))


def test_a_request_with_input_for_a_member_that_is_off_alone_is_unavailable(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.set("sick", ensemble_pb2.BREAKER_STATE_DISABLED)
        with pytest.raises(MemberOff) as failure:
            served.client.infer({"sick": number(1.0)}, policy="best_effort")
        assert failure.value.member == "sick"


def test_the_command_line_disables_members_too(tmp_path: Path) -> None:
    with serving(tmp_path) as served:

        def run(*arguments: str) -> tuple[int, str]:
            result = CliRunner().invoke(app, ["member", *arguments, "--server", served.admin_address])
            return result.exit_code, result.output

        code, said = run("off", "sick")
        assert code == 0
        assert said.startswith("sick is DISABLED, since ")
        assert served.state_of("sick") == DISABLED
        assert run("on", "sick") == (0, "sick is CLOSED\n")
        assert json.loads(run("off", "sick", "--json")[1])["breaker_state"] == "DISABLED"
        assert run("off", "third")[0] == 1


@pytest.mark.parametrize(
    ("name", "state", "parts"),
    [
        pytest.param("third", 1, ["member: found 'third'", "'sick', 'well'"], id="a member that is not there"),
        pytest.param("sick", 0, ["breaker_state: found 0", "1 (CLOSED), 3 (DISABLED)"], id="no state"),
        pytest.param("sick", 2, ["breaker_state: found 2"], id="a state that only the server sets"),
        pytest.param("sick", 9, ["breaker_state: found 9"], id="a state that does not exist"),
    ],
)
def test_a_state_that_cannot_be_set_is_refused(tmp_path: Path, name: str, state: Any, parts: list[str]) -> None:
    with serving(tmp_path) as served:
        failure = failure_of(lambda: served.set(name, state))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert all(part in failure.details for part in parts)


@pytest.mark.parametrize(("policy", "is_serving"), [("best_effort", True), ("require_all", False)])
def test_health_says_whether_the_ensembles_own_policy_can_be_kept(tmp_path: Path, policy: str, is_serving: bool) -> None:
    with serving(tmp_path, policy) as served:
        watch, own = served.watch(SERVICE), served.watch(f"{SERVICE}/sick")
        assert next(watch) == next(own) == health_pb2.HealthCheckResponse.SERVING
        served.set("sick", ensemble_pb2.BREAKER_STATE_DISABLED)
        assert next(own) == health_pb2.HealthCheckResponse.NOT_SERVING
        now = served.health.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
        assert (now == health_pb2.HealthCheckResponse.SERVING) is is_serving

"""Cascades: who is asked, who is not, and what becomes of rows between their flights."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.calls import connect
from tests.models import Opinion, chance, first_chance, number, states, write_members
from tests.servers import running
from twinfer import Client, MemberState, Response, TwinferError
from twinfer.errors import MemberFailed, MemberLate, MemberOff
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc as admin_grpc
from twinfer.v1.ensemble_pb2 import BREAKER_STATE_DISABLED
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import load_ensemble
from twinfer_server.spec import read_spec

SURE, UNSURE = 3.0, 0.5  # class 0 has the probability 0.998, and 0.731
NO_WEIGHTS: Mapping[str, float] = {}
CASCADE = '[cascade]\nfirst = "cheap"\ngate = 0.9'


class Pair:
    """A served cascade of a cheap opinion and a dear one."""

    def __init__(self, client: Client, admin_address: str, cheap: Opinion, dear: Opinion) -> None:
        self.client, self.cheap, self.dear = client, cheap, dear
        self._admin_address = admin_address

    def switch_off(self, name: str) -> None:
        with connect(self._admin_address) as admin:
            request = admin_pb.SetMemberRequest(member=name, breaker_state=BREAKER_STATE_DISABLED)
            admin_grpc.EnsembleAdminServiceStub(admin).SetMember(request)

    def ask(
        self, cheap: float | None, dear: float | None, timeout: float = 20.0, weights: Mapping[str, float] = NO_WEIGHTS
    ) -> Response:
        found = {"cheap": cheap, "dear": dear}
        inputs = {name: number(x) for name, x in found.items() if x is not None}
        return self.client.infer(inputs, timeout=timeout, fusion_weights=weights)


@contextmanager
def serving(folder: Path, policy: str = "best_effort", fusion: str = "") -> Iterator[Pair]:
    cheap, dear = Opinion(), Opinion()
    write_members(folder, {"cheap": cheap, "dear": dear}, f'policy = "{policy}"', f"{CASCADE}\n{fusion}")
    with (
        running(folder, trust_code=True, admin_listen="127.0.0.1:0") as server,
        Client(server.address, attempts=1) as client,
    ):
        cheap.forget()
        dear.forget()
        yield Pair(client, server.admin_address, cheap, dear)


@pytest.fixture(params=["best_effort", "require_all"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with serving(tmp_path, request.param) as found:
        yield found


def test_a_sure_first_member_answers_alone_and_the_other_is_skipped(pair: Pair) -> None:
    answer = pair.ask(SURE, UNSURE)
    assert states(answer) == {"cheap": "OK", "dear": "SKIPPED"}
    assert first_chance(answer) == pytest.approx(chance(SURE), abs=1e-6)
    assert not answer.degraded
    assert answer.members["dear"].weight == 0
    assert pair.dear.batches == []


def test_an_unsure_first_member_is_fused_with_the_other_and_asked_once(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    answer = pair.ask(UNSURE, 1.0)
    assert states(answer) == {"cheap": "OK", "dear": "OK"}
    assert first_chance(answer) == pytest.approx(chance(UNSURE, 1.0), abs=1e-6)
    assert [member.weight for member in answer.members.values()] == [0.5, 0.5]
    assert pair.cheap.batches == [[UNSURE]]
    assert pair.dear.batches == [[1.0]]
    assert answer.members["cheap"].device_ms is not None
    assert not [record for record in caplog.records if record.levelname == "ERROR"], (
        "a flight without answers is none to learn from"
    )


def test_a_first_member_that_weighs_nothing_for_a_row_does_not_answer_it_alone(pair: Pair) -> None:
    answer = pair.ask(SURE, UNSURE, weights={"dear": 1.0})
    assert states(answer) == {"cheap": "OK", "dear": "OK"}
    assert first_chance(answer) == pytest.approx(chance(UNSURE), abs=1e-6)
    assert [member.weight for member in answer.members.values()] == [0.0, 1.0]
    assert states(pair.ask(SURE, UNSURE, weights={"cheap": 0.1, "dear": 1.0})) == {"cheap": "OK", "dear": "SKIPPED"}


def test_a_first_member_that_weighs_nothing_in_the_fusion_answers_no_row_alone(tmp_path: Path) -> None:
    with serving(tmp_path, fusion="[fusion.weights]\ncheap = 0.0\ndear = 1.0") as pair:
        assert first_chance(pair.ask(SURE, UNSURE)) == pytest.approx(chance(UNSURE), abs=1e-6)
        assert states(pair.ask(SURE, UNSURE, weights={"cheap": 1.0})) == {"cheap": "OK", "dear": "SKIPPED"}


def test_rows_of_both_kinds_come_back_with_their_own_answers(pair: Pair) -> None:
    xs = [SURE if n % 3 else UNSURE + n / 128 for n in range(60)]
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda x: pair.ask(x, -x), xs))
    for x, answer in zip(xs, answers, strict=True):
        expected = chance(x) if x == SURE else chance(x, -x)
        assert first_chance(answer) == pytest.approx(expected, abs=1e-6)
    assert sorted(x for batch in pair.dear.batches for x in batch) == sorted(-x for x in xs if x != SURE)


def test_the_others_answer_where_the_first_member_fails(tmp_path: Path) -> None:
    with serving(tmp_path) as pair:
        pair.cheap.error = RuntimeError("broken")
        answer = pair.ask(SURE, 1.0)
        assert states(answer) == {"cheap": "FAILED", "dear": "OK"}
        assert answer.degraded
        assert first_chance(answer) == pytest.approx(chance(1.0), abs=1e-6)


def test_a_first_member_that_fails_ends_the_row_where_all_are_required(tmp_path: Path) -> None:
    with serving(tmp_path, "require_all") as pair:
        pair.cheap.error = RuntimeError("broken")
        with pytest.raises(MemberFailed) as failure:
            pair.ask(SURE, 1.0)
        assert failure.value.member == "cheap"
        assert pair.dear.batches == []


def test_a_row_without_input_for_the_first_member_goes_to_the_others_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as pair:
        answer = pair.ask(None, 1.0)
        assert states(answer) == {"cheap": "NO_INPUT", "dear": "OK"}


def test_a_row_without_input_for_the_others_is_answered_by_an_unsure_first_member(tmp_path: Path) -> None:
    with serving(tmp_path) as pair:
        answer = pair.ask(UNSURE, None)
        assert states(answer) == {"cheap": "OK", "dear": "NO_INPUT"}


@pytest.mark.parametrize("is_waiting", [False, True], ids=["in its second flight", "waiting for its second flight"])
def test_a_row_that_cannot_wait_for_the_second_member_is_answered_by_the_first(tmp_path: Path, is_waiting: bool) -> None:
    with serving(tmp_path) as pair, ThreadPoolExecutor(3) as callers, pair.dear.held():
        held = [callers.submit(pair.ask, UNSURE, 1.0) for _ in range(2 if is_waiting else 0)]  # in both of the other's slots
        assert not held or pair.dear.entered.wait(10)
        answer = pair.ask(UNSURE, 1.0, timeout=2.0)
        assert states(answer) == {"cheap": "OK", "dear": "LATE"}
        assert answer.degraded
        assert first_chance(answer) == pytest.approx(chance(UNSURE), abs=1e-6)
        assert isinstance(answer.members["dear"].error, MemberLate)
        pair.dear.release()
        assert [states(call.result())["dear"] for call in held] == ["OK"] * len(held)


def test_a_row_that_needs_a_second_member_that_is_late_fails_where_all_are_required(tmp_path: Path) -> None:
    with serving(tmp_path, "require_all") as pair, pair.dear.held():
        with pytest.raises(TwinferError) as failure:
            pair.ask(UNSURE, 1.0, timeout=2.0)
        assert failure.value.member == "dear"
        assert pair.ask(SURE, 1.0).members["dear"].state is MemberState.SKIPPED


def test_with_the_second_member_off_sure_rows_are_whole_and_the_others_are_answered_by_the_first(tmp_path: Path) -> None:
    with serving(tmp_path) as pair:
        pair.switch_off("dear")
        assert states(pair.ask(SURE, 1.0)) == {"cheap": "OK", "dear": "SKIPPED"}
        answer = pair.ask(UNSURE, 1.0)
        assert states(answer) == {"cheap": "OK", "dear": "OFF"}
        assert first_chance(answer) == pytest.approx(chance(UNSURE), abs=1e-6)


def test_with_the_first_member_off_the_others_answer_in_its_place(tmp_path: Path) -> None:
    with serving(tmp_path) as pair:
        pair.switch_off("cheap")
        answer = pair.ask(SURE, 1.0)
        assert states(answer) == {"cheap": "OFF", "dear": "OK"}
        assert first_chance(answer) == pytest.approx(chance(1.0), abs=1e-6)


def test_where_all_are_required_a_member_that_is_off_fails_only_the_rows_that_need_it(tmp_path: Path) -> None:
    with serving(tmp_path, "require_all") as pair:
        pair.switch_off("dear")
        assert states(pair.ask(SURE, 1.0)) == {"cheap": "OK", "dear": "SKIPPED"}
        with pytest.raises(MemberOff) as failure:
            pair.ask(UNSURE, 1.0)
        assert failure.value.member == "dear"


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        pytest.param('[cascade]\nfirst = "third"\ngate = 0.9', "cascade.first names", id="a member that is not there"),
        pytest.param('[cascade]\nfirst = "cheap"\ngate = 2.0', "cascade.gate: found 2.0", id="a gate above 1"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(tmp_path: Path, tail: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=message):
        read_spec(write_members(tmp_path, {"cheap": Opinion(), "dear": Opinion()}, tail=tail))


def test_a_cascade_needs_a_gate(tmp_path: Path) -> None:
    from twinfer_server.device import CpuDevice
    from twinfer_server.inputs import InputLimits
    from twinfer_server.trust import Trust

    folder = write_members(tmp_path, {"cheap": Opinion(), "dear": Opinion()}, tail='[cascade]\nfirst = "cheap"')
    with pytest.raises(InvalidEnsemble, match=r"cascade.gate: found nothing; allowed: 0 to 1"):
        load_ensemble(folder, CpuDevice(lanes=2), Trust(runs_any_code=True), InputLimits())

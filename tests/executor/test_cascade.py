"""Cascades: which members are asked, which are not, and what becomes of requests between their batches."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.calls import PATIENCE_SECONDS, disable_member
from tests.models import Opinion, chance, first_chance, load_members, number, states, write_members
from tests.servers import running
from twinfer import Client, Response, TwinferError
from twinfer.errors import MemberFailed, MemberLate, MemberOff
from twinfer_server.errors import InvalidEnsemble

SURE, UNSURE = 3.0, 0.5  # class 0 has the probability 0.998, and 0.731
NO_WEIGHTS: Mapping[str, float] = {}
CASCADE = '[cascade]\nfirst = "cheap"\ngate = 0.9'


class Pair:
    """A served cascade of a cheap opinion and a dear one."""

    def __init__(self, client: Client, admin_address: str, cheap: Opinion, dear: Opinion) -> None:
        self.client, self.admin_address, self.cheap, self.dear = client, admin_address, cheap, dear

    def ask(
        self, cheap: float | None, dear: float | None, timeout: float = 20.0, weights: Mapping[str, float] = NO_WEIGHTS
    ) -> Response:
        inputs = {name: number(x) for name, x in (("cheap", cheap), ("dear", dear)) if x is not None}
        return self.client.infer(inputs, timeout=timeout, fusion_weights=weights)


@contextmanager
def serving(folder: Path, policy: str = "best_effort", fusion: str = "") -> Iterator[Pair]:
    models = {"cheap": Opinion(), "dear": Opinion()}
    write_members(folder, models, f'policy = "{policy}"', f"{CASCADE}\n{fusion}")
    with (
        running(folder, trust_code=True, admin_listen="127.0.0.1:0") as server,
        Client(server.address, attempts=1) as client,
    ):
        for model in models.values():
            model.forget()
        yield Pair(client, server.admin_address, **models)


@pytest.fixture(params=["best_effort", "require_all"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with serving(tmp_path, request.param) as found:
        yield found


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[Pair]:
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Pair]:
    with serving(tmp_path, "require_all") as found:
        yield found


def check(answer: Response, cheap: str, dear: str, *logits: float) -> None:
    """Check what became of both members, and the mean of which logits the answer is."""
    assert states(answer) == {"cheap": cheap, "dear": dear}
    assert first_chance(answer) == pytest.approx(chance(*logits), abs=1e-6)
    assert answer.degraded == any(state in ("FAILED", "LATE", "OFF") for state in (cheap, dear))


def test_a_sure_first_member_answers_alone_and_the_other_is_skipped(pair: Pair) -> None:
    answer = pair.ask(SURE, UNSURE)
    check(answer, "OK", "SKIPPED", SURE)
    assert answer.members["dear"].weight == 0
    assert pair.dear.batches == []


def test_an_unsure_first_member_is_fused_with_the_other_and_asked_once(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    answer = pair.ask(UNSURE, 1.0)
    check(answer, "OK", "OK", UNSURE, 1.0)
    assert [member.weight for member in answer.members.values()] == [0.5, 0.5]
    assert (pair.cheap.batches, pair.dear.batches) == ([[UNSURE]], [[1.0]])
    assert answer.members["cheap"].device_ms is not None
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert not errors, "a batch without responses is none to learn from"


def test_a_first_member_that_weighs_nothing_for_a_request_does_not_answer_it_alone(pair: Pair) -> None:
    answer = pair.ask(SURE, UNSURE, weights={"dear": 1.0})
    check(answer, "OK", "OK", UNSURE)
    assert [member.weight for member in answer.members.values()] == [0.0, 1.0]
    check(pair.ask(SURE, UNSURE, weights={"cheap": 0.1, "dear": 1.0}), "OK", "SKIPPED", SURE)


def test_a_first_member_that_weighs_nothing_in_the_fusion_answers_no_request_alone(tmp_path: Path) -> None:
    with serving(tmp_path, fusion="[fusion.weights]\ncheap = 0.0\ndear = 1.0") as pair:
        check(pair.ask(SURE, UNSURE), "OK", "OK", UNSURE)
        check(pair.ask(SURE, UNSURE, weights={"cheap": 1.0}), "OK", "SKIPPED", SURE)


def test_requests_of_both_kinds_come_back_with_their_own_answers(pair: Pair) -> None:
    xs = [SURE if n % 3 else UNSURE + n / 128 for n in range(60)]
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda x: pair.ask(x, -x), xs))
    for x, answer in zip(xs, answers, strict=True):
        assert first_chance(answer) == pytest.approx(chance(x) if x == SURE else chance(x, -x), abs=1e-6)
    assert sorted(x for batch in pair.dear.batches for x in batch) == sorted(-x for x in xs if x != SURE)


def test_the_others_answer_where_the_first_member_fails(lenient: Pair) -> None:
    lenient.cheap.error = RuntimeError("broken")
    check(lenient.ask(SURE, 1.0), "FAILED", "OK", 1.0)


def test_a_first_member_that_fails_ends_the_request_where_all_are_required(strict: Pair) -> None:
    strict.cheap.error = RuntimeError("broken")
    with pytest.raises(MemberFailed) as failure:
        strict.ask(SURE, 1.0)
    assert failure.value.member == "cheap"
    assert strict.dear.batches == []


def test_a_request_without_input_for_one_side_is_answered_by_the_other(lenient: Pair) -> None:
    check(lenient.ask(None, 1.0), "NO_INPUT", "OK", 1.0)
    check(lenient.ask(UNSURE, None), "OK", "NO_INPUT", UNSURE)


@pytest.mark.parametrize("is_waiting", [False, True], ids=["in its second batch", "waiting for its second batch"])
def test_a_request_that_cannot_wait_for_the_second_member_is_answered_by_the_first(lenient: Pair, is_waiting: bool) -> None:
    with ThreadPoolExecutor(3) as callers, lenient.dear.held():
        held = [callers.submit(lenient.ask, UNSURE, 1.0) for _ in range(2 if is_waiting else 0)]  # in both sets of its buffers
        assert not held or lenient.dear.entered.wait(PATIENCE_SECONDS)
        answer = lenient.ask(UNSURE, 1.0, timeout=2.0)
        check(answer, "OK", "LATE", UNSURE)
        assert isinstance(answer.members["dear"].error, MemberLate)
        lenient.dear.release()
        for call in held:
            check(call.result(), "OK", "OK", UNSURE, 1.0)


def test_a_request_that_needs_a_second_member_that_is_late_fails_where_all_are_required(strict: Pair) -> None:
    with strict.dear.held():
        with pytest.raises(TwinferError) as failure:
            strict.ask(UNSURE, 1.0, timeout=2.0)
        assert failure.value.member == "dear"
        check(strict.ask(SURE, 1.0), "OK", "SKIPPED", SURE)


def test_with_the_second_member_off_sure_requests_are_whole_and_the_others_are_answered_by_the_first(lenient: Pair) -> None:
    disable_member(lenient.admin_address, "dear")
    check(lenient.ask(SURE, 1.0), "OK", "SKIPPED", SURE)
    check(lenient.ask(UNSURE, 1.0), "OK", "OFF", UNSURE)


def test_with_the_first_member_off_the_others_answer_instead(lenient: Pair) -> None:
    disable_member(lenient.admin_address, "cheap")
    check(lenient.ask(SURE, 1.0), "OFF", "OK", 1.0)


def test_where_all_are_required_a_member_that_is_off_fails_only_the_requests_that_need_it(strict: Pair) -> None:
    disable_member(strict.admin_address, "dear")
    check(strict.ask(SURE, 1.0), "OK", "SKIPPED", SURE)
    with pytest.raises(MemberOff) as failure:
        strict.ask(UNSURE, 1.0)
    assert failure.value.member == "dear"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param('first = "third"\ngate = 0.9', r"cascade.first: found \['third'\]", id="a member that is not there"),
        pytest.param('first = "cheap"\ngate = 2.0', "cascade.gate: found 2.0", id="a gate above 1"),
        pytest.param('first = "cheap"', r"cascade.gate: found nothing; allowed: 0 to 1", id="no gate"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=message):
        load_members(write_members(tmp_path, {"cheap": Opinion(), "dear": Opinion()}, tail=f"[cascade]\n{keys}"))

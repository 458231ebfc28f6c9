"""The batcher: who flies with whom, and when; with members that compute as long as a test wants."""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import Opinion, as_any, chance, load_members, number, write_members
from tests.recording import RecordingDevice
from twinfer_server.engine.batcher import Batcher
from twinfer_server.engine.queue import RowQueue
from twinfer_server.errors import MemberFailed, MemberOff, TwinferError
from twinfer_server.executor import Ensemble
from twinfer_server.settings import ServerSettings
from twinfer_server.types import InferRequest, Policy, Priority, Request, Response, State

PLANS = ["serial", "streams"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A row that waits, and where its answer will be."""

    row: Request
    future: "Future[Response]"

    def answer(self) -> Response:
        """Sleep until the row is answered; raises its error."""
        return self.future.result()


class Desk:
    """A batcher with two opinions, `left` and `right`, and somebody who hands out its answers."""

    def __init__(self, ensemble: Ensemble, models: Mapping[str, Opinion], **settings: Any) -> None:
        self.ensemble = ensemble
        self.left, self.right = models["left"], models["right"]
        self.batcher = Batcher(ensemble, ServerSettings(**settings), self._hand_out, lambda: None)

    def is_on(self, name: str) -> bool:
        return self.batcher.switchboard.is_on[name]

    def make(
        self, *, policy: Policy = Policy.BEST_EFFORT, priority: Priority = Priority.NORMAL, reply_in: float = 1e6, **xs: float
    ) -> Ticket:  # fmt: skip
        """Make a row with a number for each member that `xs` names; it is not put yet."""
        request = InferRequest({name: number(x) for name, x in xs.items()}, arrived_at=0.0, priority=priority)
        now = time.monotonic()
        future: Future[Response] = Future()
        row = Request(
            request=request, policy=policy, weights=None, reply_by=now + reply_in, answer=as_any(future),
            samples=self.ensemble.prepare(request), ready_at=now,
        )  # fmt: skip
        return Ticket(row, future)

    def put(self, **arguments: Any) -> Ticket:
        ticket = self.make(**arguments)
        self.batcher.put([ticket.row])
        return ticket

    def put_both(self, x: float) -> Ticket:
        return self.put(left=x, right=x)

    def _hand_out(self, rows: Sequence[Request], answers: Sequence[Response | TwinferError]) -> None:
        for row, answer in zip(rows, answers, strict=True):
            future: Future[Response] = as_any(row.answer)
            if row.is_answered:
                continue
            if isinstance(answer, TwinferError):
                future.set_exception(answer)
            else:
                future.set_result(answer)


@contextmanager
def open_desk(
    folder: Path, execution: str = "serial", *, max_batch_size: int = 4, tail: str = "", seconds: float = 0.001, **settings: Any
) -> Iterator[Desk]:  # fmt: skip
    models = {"left": Opinion(), "right": Opinion()}
    ensemble = load_members(write_members(folder, models, tail=tail, max_batch_size=max_batch_size), execution, seconds=seconds)
    desk = Desk(ensemble, models, **settings)
    desk.batcher.start()
    try:
        yield desk
    finally:
        for model in models.values():
            model.release()
        desk.batcher.close()
        ensemble.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


@contextmanager
def in_the_air(desk: Desk) -> Iterator[Ticket]:
    """Keep a flight of one row computing, so that the rows that are put meanwhile collect."""
    with desk.left.held():
        ticket = desk.put_both(0.0)
        desk.left.entered.wait()
        yield ticket
    assert not ticket.answer().is_degraded


@pytest.mark.parametrize("execution", PLANS)
def test_a_lone_row_flies_at_once(tmp_path: Path, execution: str) -> None:
    with open_desk(tmp_path, execution, max_batch_size=4) as desk:
        for x in (0.25, -0.5):
            answer = desk.put_both(x).answer()
            assert answer.fused[0] == pytest.approx(chance(x), abs=1e-6)
            assert answer.timings.batch_size == 1
        assert desk.left.batches == desk.right.batches == [[0.25], [-0.5]]


def test_rows_collect_while_a_flight_computes_and_then_fly_together(desk: Desk) -> None:
    with in_the_air(desk):
        tickets = [desk.put_both(x) for x in (0.1, 0.2, 0.3)]
    for x, ticket in zip((0.1, 0.2, 0.3), tickets, strict=True):
        assert ticket.answer().fused[0] == pytest.approx(chance(x), abs=1e-6)
        assert ticket.answer().timings.batch_size == 3
    assert [len(batch) for batch in desk.left.batches] == [1, 3]


def test_no_flight_carries_more_than_max_rows(desk: Desk) -> None:
    with in_the_air(desk):
        tickets = [desk.put_both(x / 10) for x in range(10)]
    for x, ticket in enumerate(tickets):
        assert ticket.answer().fused[0] == pytest.approx(chance(x / 10), abs=1e-6)
    assert [len(batch) for batch in desk.left.batches] == [1, 4, 4, 2]


def test_rows_of_all_modalities_share_a_flight_and_members_see_their_own_rows_only(desk: Desk) -> None:
    with in_the_air(desk):
        both, left, right = desk.put(left=0.1, right=0.2), desk.put(left=0.3), desk.put(right=0.4)
    assert both.answer().fused[0] == pytest.approx(chance(0.1, 0.2), abs=1e-6)
    assert left.answer().fused[0] == pytest.approx(chance(0.3), abs=1e-6)
    assert right.answer().fused[0] == pytest.approx(chance(0.4), abs=1e-6)
    assert [member.state for member in left.answer().members] == [State.OK, State.NO_INPUT]
    assert [member.state for member in right.answer().members] == [State.NO_INPUT, State.OK]
    assert {ticket.answer().timings.batch_size for ticket in (both, left, right)} == {3}
    assert not left.answer().is_degraded
    assert desk.left.batches[1:] == [pytest.approx([0.1, 0.3])]
    assert desk.right.batches[1:] == [pytest.approx([0.2, 0.4])]


def test_a_row_of_high_priority_boards_first_and_one_of_low_priority_last(tmp_path: Path) -> None:
    with open_desk(tmp_path, max_batch_size=2) as desk:
        with in_the_air(desk):
            tickets = [
                desk.put(left=x, right=x, priority=priority)
                for x, priority in ((1, Priority.LOW), (2, Priority.NORMAL), (3, Priority.NORMAL), (4, Priority.HIGH))
            ]
        for ticket in tickets:
            ticket.answer()
        assert desk.left.batches[1:] == [[4, 2], [3, 1]]


@given(st.lists(st.tuples(st.integers(0, 640).map(lambda count: count / 64), st.sampled_from(Priority)), max_size=20))
def test_each_step_of_priority_is_worth_a_second_of_waiting_and_no_more(waiting: list[tuple[float, Priority]]) -> None:
    queue = RowQueue(batch_size=4, flight_seconds=0.01)
    for ready_at, priority in waiting:
        request = InferRequest({}, arrived_at=0.0, priority=priority)
        queue.put(Request(request, Policy.BEST_EFFORT, as_any(None), 1e6, as_any(Future()), ready_at=ready_at))
    order = [(row.ready_at, row.request.priority) for row in queue.take_in_order()]
    assert sorted(order) == sorted(waiting)
    for (ready_at, priority), (next_ready_at, next_priority) in itertools.pairwise(order):
        assert ready_at - next_ready_at <= priority - next_priority


@given(
    st.integers(1, 200),
    st.integers(1, 64),
    st.floats(0.0, 5.0),
    st.lists(st.floats(0.0, 100.0), max_size=20),
)
def test_what_is_left_of_a_crowd_lets_rows_of_the_next_second_or_of_its_own_flights_pass_and_no_others(
    count: int, batch_size: int, flight_seconds: float, singles: list[float]
) -> None:
    queue = RowQueue(batch_size, flight_seconds)
    request = InferRequest({}, arrived_at=0.0)

    def put(ready_at: float, place: int) -> None:
        queue.put(Request(request, Policy.BEST_EFFORT, as_any(None), 1e6, as_any(Future()), ready_at=ready_at, place=place))

    for place in range(count):
        put(0.0, place)
    for ready_at in singles:
        put(ready_at, 0)
    order = list(queue.take_in_order())
    crowd = [row.place for row in order if row.ready_at == 0.0 and row.place]
    assert crowd == sorted(crowd)
    for earlier, later in itertools.combinations(order, 2):
        if earlier.ready_at > later.ready_at:  # it has passed a row of the crowd
            flights_before = later.place // batch_size
            assert flights_before
            assert earlier.ready_at <= max(1.0, flights_before * flight_seconds)


def test_a_row_past_its_deadline_is_never_launched(desk: Desk) -> None:
    with in_the_air(desk):
        late = desk.put(left=5, right=5, reply_in=0.0)
        other = desk.put_both(0.5)
    other.answer()
    assert desk.left.batches == [[0], [0.5]]
    assert not late.future.done()  # whoever watches the clock answers it


def test_a_cancelled_row_leaves_no_hole(desk: Desk) -> None:
    with in_the_air(desk):
        tickets = [desk.put_both(x) for x in (1, 2, 3)]
        tickets[1].future.cancel()
        desk.batcher.discard_answered()
    assert tickets[0].answer().timings.batch_size == 2
    tickets[2].answer()
    assert desk.left.batches[1:] == [[1, 3]]


def test_a_row_cancelled_in_mid_flight_harms_nobody(desk: Desk) -> None:
    with desk.left.held():
        first = desk.put_both(0.1)
        desk.left.entered.wait()
        second = desk.put_both(0.2)
        first.future.cancel()
        desk.batcher.discard_answered()
    assert second.answer().fused[0] == pytest.approx(chance(0.2), abs=1e-6)
    assert desk.left.batches == desk.right.batches == [pytest.approx([0.1]), pytest.approx([0.2])]


def test_with_a_delay_a_lone_row_waits_for_company(tmp_path: Path) -> None:
    with open_desk(tmp_path, max_batch_size=2, tail="max_delay_ms = 1000") as desk:
        tickets = [desk.put_both(x) for x in (1, 2)]  # a full flight need not wait any longer
        assert [ticket.answer().timings.batch_size for ticket in tickets] == [2, 2]
        assert desk.left.batches == [[1, 2]]


def test_a_delay_ends_although_nobody_else_comes(tmp_path: Path) -> None:
    with open_desk(tmp_path, tail="max_delay_ms = 30") as desk:
        answer = desk.put_both(1).answer()
        assert answer.timings.batch_size == 1
        assert answer.timings.queue_seconds >= 0.03


@pytest.mark.parametrize("execution", PLANS)
@pytest.mark.parametrize("broken", ["left", "right"])
def test_a_member_that_raises_fails_its_own_part_and_the_next_flight_is_whole(tmp_path: Path, execution: str, broken: str) -> None:
    with open_desk(tmp_path, execution) as desk:
        model = {"left": desk.left, "right": desk.right}[broken]
        model.error = ValueError("no such number")
        degraded, strict = desk.put(left=0.1, right=0.2), desk.put(left=0.1, right=0.2, policy=Policy.REQUIRE_ALL)
        answer = degraded.answer()
        states = dict(zip(("left", "right"), answer.members, strict=True))
        assert states.pop(broken).state is State.FAILED
        (other,) = states.values()
        assert other.state is State.OK
        assert other.weight == pytest.approx(1)
        assert answer.is_degraded
        assert answer.disagreement is None
        assert answer.fused[0] == pytest.approx(chance(0.2 if broken == "left" else 0.1), abs=1e-6)
        with pytest.raises(MemberFailed, match="ValueError: no such number") as failure:
            strict.answer()
        assert failure.value.member == broken
        model.error = None
        assert not desk.put(left=0.1, right=0.2).answer().is_degraded


@pytest.mark.parametrize("execution", PLANS)
def test_wherever_the_device_refuses_the_rows_are_answered_and_the_slots_come_back(tmp_path: Path, execution: str) -> None:
    models = {"left": Opinion(), "right": Opinion()}
    device = RecordingDevice()
    ensemble = load_members(write_members(tmp_path, models), execution, device=device)
    device.take_over()
    desk = Desk(ensemble, models)
    desk.batcher.start()
    for refused in range(20):  # more than a flight has operations
        device.refuse_at = refused
        broken = desk.put(left=0.1, right=0.2)
        with suppress(TwinferError):
            assert broken.answer().fused[0] in map(pytest.approx, (chance(0.1), chance(0.2), chance(0.1, 0.2)))
        device.refuse_at = None
        for _ in range(3):  # more than there are slots
            assert desk.put(left=0.1, right=0.2).answer().fused[0] == pytest.approx(chance(0.1, 0.2))
    assert "launch" not in device.waits
    desk.batcher.close()


@pytest.mark.parametrize("execution", PLANS)
def test_rows_for_the_free_member_fly_on_beside_a_stuck_one(tmp_path: Path, execution: str) -> None:
    with open_desk(tmp_path, execution) as desk, desk.left.held():
        stuck = desk.put_both(0.5)
        desk.left.entered.wait()
        for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):  # more than there are slots
            ticket = desk.put(right=x)
            while not ticket.future.done():
                desk.batcher.look_for_stuck()  # as the row's own clock does
            assert ticket.answer().fused[0] == pytest.approx(chance(x), abs=1e-6)
        assert not stuck.future.done()
        desk.left.release()
        assert not stuck.answer().is_degraded
        assert desk.batcher.standing_seconds() == {"left": 0.0, "right": 0.0}


@pytest.mark.parametrize("execution", PLANS)
def test_only_who_is_stuck_is_switched_off_and_nobody_who_waits_behind_it(tmp_path: Path, execution: str) -> None:
    with open_desk(tmp_path, execution, seconds=0.05, breaker_stall_seconds=0.01) as desk, desk.left.held():
        stuck = desk.put_both(0.5)
        while desk.is_on("left") or not desk.right.batches:
            desk.batcher.look_for_stuck()
            assert desk.is_on("right")
        assert desk.put_both(0.25).answer().members[0].state is State.OFF
        desk.left.release()
        assert not stuck.answer().is_degraded


def test_rows_that_wait_for_a_member_that_is_switched_off_wait_no_longer(tmp_path: Path) -> None:
    with open_desk(tmp_path, "streams") as desk, in_the_air(desk):
        strict, alone, either = desk.put(left=0.1, right=0.2, policy=Policy.REQUIRE_ALL), desk.put(left=0.1), desk.put_both(0.3)
        desk.batcher.set_member(0, is_on=False)
        for ticket in (strict, alone):  # while the member still computes
            with pytest.raises(MemberOff, match="an operator has switched it off") as failure:
                ticket.answer()
            assert failure.value.member == "left"
        assert either.answer().members[0].state is State.OFF


def test_a_probe_that_gets_stuck_has_failed_although_it_ends_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="twinfer_server.engine.breaker")
    with open_desk(tmp_path, breaker_failures=1, breaker_stall_seconds=0.1, breaker_probe_seconds=0.1) as desk:
        desk.left.error = ValueError("broken")
        assert desk.put_both(0.5).answer().members[0].state is State.FAILED
        while desk.is_on("left"):
            desk.put(right=0.5).answer()
        with desk.left.held():
            desk.left.error = None
            desk.left.entered.wait()
            while desk.batcher.standing_seconds()["left"] < 0.15:
                assert desk.put_both(0.25).answer().members[0].state is State.OFF
        while not desk.is_on("left"):
            desk.put(right=0.5).answer()
        assert "member left stays off" in caplog.text
        assert "the probe failed: it took" in caplog.text


def test_rows_that_cannot_wait_for_the_landing_are_answered_once_and_together(tmp_path: Path) -> None:
    with open_desk(tmp_path, "streams") as desk:
        with in_the_air(desk):
            tickets = [desk.make(left=0.1, right=x / 10) for x in range(3)]
            for ticket in tickets:
                desk.batcher.put([ticket.row])
        patient = tickets.pop()
        patient.answer()
        desk.left.entered.clear()
        with desk.left.held():
            tickets = [desk.put(left=0.1, right=0.2)]
            desk.left.entered.wait()
            tickets[0].row.reply_by = 0.0
            found = desk.batcher.fuse_late(tickets[0].row)
            assert found is not None
            assert found[0] == [tickets[0].row]
            assert desk.batcher.fuse_late(tickets[0].row) == ([], [])
        tickets[0].answer()
        assert desk.batcher.fuse_late(desk.make(left=0.1).row) is None


def test_after_closing_no_thread_is_left_waiting(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with open_desk(tmp_path, "streams") as desk:
        desk.put_both(0.5).answer()
        started = set(threading.enumerate()) - before
        assert {thread.name.partition("-")[0] for thread in started} == {"launch", "lane", "wait"}
    for thread in started:
        thread.join()

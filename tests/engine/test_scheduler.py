"""The scheduler: which requests are computed together, and when; with members that compute as long as a test wants."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from twinfer_server.device import Execution
from twinfer_server.engine.queue import RequestQueue
from twinfer_server.engine.scheduler import Scheduler
from twinfer_server.errors import DeadlinePassed, InternalError, MemberFailed, MemberLate, MemberOff, TwinferError
from twinfer_server.executor import Ensemble
from twinfer_server.settings import ServerSettings
from twinfer_server.types import InferRequest, Policy, Priority, Request, Response, State

EXECUTIONS = ["serial", "streams"]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that waits, and where its response will be."""

    request: Request
    future: "Future[Response]"

    def response(self) -> Response:
        """Sleep until the request is answered; raises its error."""
        return self.future.result()


class Rig:
    """A scheduler with two opinions, `left` and `right`, which hands out their responses."""

    def __init__(self, ensemble: Ensemble, models: Mapping[str, Opinion], **settings: Any) -> None:
        self.ensemble = ensemble
        self.left, self.right = models["left"], models["right"]
        self.scheduler = Scheduler(ensemble, ServerSettings(**settings), self._hand_out, lambda: None)

    def is_on(self, name: str) -> bool:
        return self.scheduler.breakers.is_on[name]

    def make(
        self, *, policy: Policy = Policy.BEST_EFFORT, priority: Priority = Priority.NORMAL, reply_in: float = 1e6, caller: str = "",
        **xs: float,
    ) -> Call:  # fmt: skip
        """Make a request with a number for each member that `xs` names; it is not put yet."""
        request = InferRequest({name: number(x) for name, x in xs.items()}, arrived_at=0.0, priority=priority, caller=caller)
        now = time.monotonic()
        future: Future[Response] = Future()
        made = Request(
            request=request, policy=policy, weights=None, reply_by=now + reply_in, response=as_any(future),
            samples=self.ensemble.processor.prepare(request), ready_at=now,
        )  # fmt: skip
        return Call(made, future)

    def put(self, in_flight: int = 1, **arguments: Any) -> Call:
        call = self.make(**arguments)
        self.scheduler.put([call.request], in_flight)
        return call

    def put_both(self, x: float) -> Call:
        return self.put(left=x, right=x)

    def _hand_out(self, requests: Sequence[Request], responses: Sequence[Response | TwinferError]) -> None:
        for request, response in zip(requests, responses, strict=True):
            future: Future[Response] = as_any(request.response)
            if request.is_answered:
                continue
            if isinstance(response, TwinferError):
                future.set_exception(response)
            else:
                future.set_result(response)


@contextmanager
def open_rig(
    folder: Path, execution: Execution = "serial", *, max_batch_size: int = 4, tail: str = "", seconds: float = 0.001,
    **settings: Any,
) -> Iterator[Rig]:  # fmt: skip
    models = {"left": Opinion(), "right": Opinion()}
    ensemble = load_members(write_members(folder, models, tail=tail, max_batch_size=max_batch_size), execution, seconds=seconds)
    rig = Rig(ensemble, models, **settings)
    rig.scheduler.start()
    try:
        yield rig
    finally:
        for model in models.values():
            model.release()
        rig.scheduler.close()
        ensemble.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


@contextmanager
def under_way(rig: Rig) -> Iterator[Call]:
    """Keep a batch of one request computing, so that the requests that are put meanwhile collect."""
    with rig.left.held():
        call = rig.put_both(0.0)
        rig.left.entered.wait()
        yield call
    assert not call.response().is_degraded


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_lone_request_is_launched_at_once(tmp_path: Path, execution: Execution) -> None:
    with open_rig(tmp_path, execution, max_batch_size=4) as rig:
        for x in (0.25, -0.5):
            response = rig.put_both(x).response()
            assert response.prediction[0] == pytest.approx(chance(x), abs=1e-6)
            assert response.timings.batch_size == 1
        assert rig.left.batches == rig.right.batches == [[0.25], [-0.5]]


def test_requests_collect_while_a_batch_computes_and_then_share_one(rig: Rig) -> None:
    with under_way(rig):
        calls = [rig.put_both(x) for x in (0.1, 0.2, 0.3)]
    for x, call in zip((0.1, 0.2, 0.3), calls, strict=True):
        assert call.response().prediction[0] == pytest.approx(chance(x), abs=1e-6)
        assert call.response().timings.batch_size == 3
    assert [len(batch) for batch in rig.left.batches] == [1, 3]


def test_no_batch_holds_more_than_max_batch_size(rig: Rig) -> None:
    with under_way(rig):
        calls = [rig.put_both(x / 10) for x in range(10)]
    for x, call in enumerate(calls):
        assert call.response().prediction[0] == pytest.approx(chance(x / 10), abs=1e-6)
    assert [len(batch) for batch in rig.left.batches] == [1, 4, 4, 2]


def test_requests_of_all_modalities_share_a_batch_and_members_see_their_own_only(rig: Rig) -> None:
    with under_way(rig):
        both, left, right = rig.put(left=0.1, right=0.2), rig.put(left=0.3), rig.put(right=0.4)
    assert both.response().prediction[0] == pytest.approx(chance(0.1, 0.2), abs=1e-6)
    assert left.response().prediction[0] == pytest.approx(chance(0.3), abs=1e-6)
    assert right.response().prediction[0] == pytest.approx(chance(0.4), abs=1e-6)
    assert [member.state for member in left.response().members] == [State.OK, State.NO_INPUT]
    assert [member.state for member in right.response().members] == [State.NO_INPUT, State.OK]
    assert {call.response().timings.batch_size for call in (both, left, right)} == {3}
    assert not left.response().is_degraded
    assert rig.left.batches[1:] == [pytest.approx([0.1, 0.3])]
    assert rig.right.batches[1:] == [pytest.approx([0.2, 0.4])]


def test_a_request_of_high_priority_goes_first_and_one_of_low_priority_last(tmp_path: Path) -> None:
    with open_rig(tmp_path, max_batch_size=2) as rig:
        with under_way(rig):
            calls = [
                rig.put(left=x, right=x, priority=priority)
                for x, priority in ((1, Priority.LOW), (2, Priority.NORMAL), (3, Priority.NORMAL), (4, Priority.HIGH))
            ]
        for call in calls:
            call.response()
        assert rig.left.batches[1:] == [[4, 2], [3, 1]]


def test_callers_take_turns_from_batch_to_batch_whoever_came_first(tmp_path: Path) -> None:
    with open_rig(tmp_path, max_batch_size=1) as rig:
        with under_way(rig):
            greedy = [rig.put(left=x, caller="greedy") for x in (1, 2, 3, 4)]
            other = [rig.put(left=x, caller="other") for x in (5, 6)]
        for call in (*greedy, *other):
            call.response()
        assert rig.left.batches[1:] == [[1], [5], [2], [6], [3], [4]]


@given(st.lists(st.tuples(st.integers(0, 640).map(lambda count: count / 64), st.sampled_from(Priority)), max_size=20))
def test_each_step_of_priority_is_worth_a_second_of_waiting_and_no_more(waiting: list[tuple[float, Priority]]) -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    for ready_at, priority in waiting:
        request = InferRequest({}, arrived_at=0.0, priority=priority)
        queue.put(Request(request, Policy.BEST_EFFORT, as_any(None), 1e6, as_any(Future()), ready_at=ready_at))
    order = [(request.ready_at, request.request.priority) for request in queue.take_in_order()]
    assert sorted(order) == sorted(waiting)
    for (ready_at, priority), (next_ready_at, next_priority) in itertools.pairwise(order):
        assert ready_at - next_ready_at <= priority - next_priority


@given(
    st.integers(1, 200),
    st.integers(1, 64),
    st.floats(0.0, 5.0),
    st.lists(st.floats(0.0, 100.0), max_size=20),
)
def test_the_rest_of_a_large_call_lets_requests_of_the_next_second_or_of_its_own_batches_pass_and_no_others(
    count: int, batch_size: int, batch_seconds: float, singles: list[float]
) -> None:
    queue = RequestQueue(batch_size, batch_seconds)
    request = InferRequest({}, arrived_at=0.0)

    def put(ready_at: float, index: int) -> None:
        queue.put(Request(request, Policy.BEST_EFFORT, as_any(None), 1e6, as_any(Future()), ready_at=ready_at, index=index))

    for index in range(count):
        put(0.0, index)
    for ready_at in singles:
        put(ready_at, 0)
    order = list(queue.take_in_order())
    rest = [request.index for request in order if request.ready_at == 0.0 and request.index]
    assert rest == sorted(rest)
    for earlier, later in itertools.combinations(order, 2):
        if earlier.ready_at > later.ready_at:  # it has passed a request of the large call
            batches_before = later.index // batch_size
            assert batches_before
            assert earlier.ready_at <= max(1.0, batches_before * batch_seconds)


@pytest.mark.parametrize("policy", Policy)
def test_a_request_that_cannot_make_it_fails_at_once_and_is_never_launched(tmp_path: Path, policy: Policy) -> None:
    # Its deadline is far away, but not as far as its members take.
    with open_rig(tmp_path, seconds=500.0) as rig:
        hopeless = rig.put(left=5, right=5, reply_in=400.0, policy=policy)
        with pytest.raises(MemberLate, match="takes at least 500"):
            hopeless.response()
        rig.put_both(0.5).response()
        assert rig.left.batches == [[0.5]]


def test_a_cancelled_request_leaves_no_hole(rig: Rig) -> None:
    with under_way(rig):
        calls = [rig.put_both(x) for x in (1, 2, 3)]
        calls[1].future.cancel()
        rig.scheduler.drop_answered()
    assert calls[0].response().timings.batch_size == 2
    calls[2].response()
    assert rig.left.batches[1:] == [[1, 3]]


def test_a_request_cancelled_while_it_computes_harms_no_other(rig: Rig) -> None:
    with rig.left.held():
        first = rig.put_both(0.1)
        rig.left.entered.wait()
        second = rig.put_both(0.2)
        first.future.cancel()
        rig.scheduler.drop_answered()
    assert second.response().prediction[0] == pytest.approx(chance(0.2), abs=1e-6)
    assert rig.left.batches == rig.right.batches == [pytest.approx([0.1]), pytest.approx([0.2])]


def test_where_calls_overlap_a_launch_waits_for_the_others(tmp_path: Path) -> None:
    with open_rig(tmp_path, max_batch_size=2, tail="max_delay_ms = 1000") as rig:
        calls = [rig.put(left=x, right=x, in_flight=2) for x in (1, 2)]  # a full batch need not wait any longer
        assert [call.response().timings.batch_size for call in calls] == [2, 2]
        assert rig.left.batches == [[1, 2]]


def test_a_wait_ends_although_no_other_request_comes(tmp_path: Path) -> None:
    with open_rig(tmp_path, tail="max_delay_ms = 30") as rig:
        response = rig.put(left=1, right=1, in_flight=2).response()
        assert response.timings.batch_size == 1
        assert response.timings.queue_seconds >= 0.015


def test_a_lone_caller_never_waits(tmp_path: Path) -> None:
    with open_rig(tmp_path, tail="max_delay_ms = 1000") as rig:
        for x in range(5):
            assert rig.put_both(x).response().timings.queue_seconds < 0.5


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("broken", ["left", "right"])
def test_a_member_that_raises_fails_its_own_part_and_the_next_batch_is_whole(
    tmp_path: Path, execution: Execution, broken: str
) -> None:
    with open_rig(tmp_path, execution) as rig:
        model = {"left": rig.left, "right": rig.right}[broken]
        model.error = ValueError("no such number")
        degraded, strict = rig.put(left=0.1, right=0.2), rig.put(left=0.1, right=0.2, policy=Policy.REQUIRE_ALL)
        response = degraded.response()
        states = dict(zip(("left", "right"), response.members, strict=True))
        assert states.pop(broken).state is State.FAILED
        (other,) = states.values()
        assert other.state is State.OK
        assert other.weight == pytest.approx(1)
        assert response.is_degraded
        assert response.disagreement is None
        assert response.prediction[0] == pytest.approx(chance(0.2 if broken == "left" else 0.1), abs=1e-6)
        with pytest.raises(MemberFailed, match="the member raised ValueError; the server's log has it") as failure:
            strict.response()
        assert failure.value.member == broken
        model.error = None
        assert not rig.put(left=0.1, right=0.2).response().is_degraded


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_wherever_the_device_refuses_the_requests_are_answered_and_the_buffers_come_back(
    tmp_path: Path, execution: Execution
) -> None:
    models = {"left": Opinion(), "right": Opinion()}
    device = RecordingDevice()
    ensemble = load_members(write_members(tmp_path, models), execution, device=device)
    device.take_over()
    rig = Rig(ensemble, models)
    rig.scheduler.start()
    for refused in range(20):  # more than a batch has operations
        device.refuse_at = refused
        broken = rig.put(left=0.1, right=0.2)
        with suppress(TwinferError):
            assert broken.response().prediction[0] in map(pytest.approx, (chance(0.1), chance(0.2), chance(0.1, 0.2)))
        device.refuse_at = None
        for _ in range(3):  # more than there are sets of buffers
            assert rig.put(left=0.1, right=0.2).response().prediction[0] == pytest.approx(chance(0.1, 0.2))
    assert "launch" not in device.waits
    rig.scheduler.close()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_requests_for_the_free_member_go_on_beside_a_stuck_one(tmp_path: Path, execution: Execution) -> None:
    with open_rig(tmp_path, execution) as rig, rig.left.held():
        stuck = rig.put_both(0.5)
        rig.left.entered.wait()
        for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):  # more than there are sets of buffers
            call = rig.put(right=x)
            assert call.response().prediction[0] == pytest.approx(chance(x), abs=1e-6)
        assert not stuck.future.done()
        rig.left.release()
        assert not stuck.response().is_degraded
        assert rig.scheduler.behind_seconds() == {"left": 0.0, "right": 0.0}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_only_the_stuck_members_breaker_opens_and_not_of_one_that_waits_behind_it(tmp_path: Path, execution: Execution) -> None:
    with open_rig(tmp_path, execution, seconds=0.05, breaker_stall_seconds=0.01) as rig, rig.left.held():
        stuck = rig.put_both(0.5)
        while rig.is_on("left") or not rig.right.batches:
            assert rig.is_on("right")
        assert rig.put_both(0.25).response().members[0].state is State.OFF
        rig.left.release()
        assert not stuck.response().is_degraded


def test_requests_that_wait_for_a_member_that_is_disabled_wait_no_longer(tmp_path: Path) -> None:
    with open_rig(tmp_path, "streams") as rig, under_way(rig):
        strict, alone, either = rig.put(left=0.1, right=0.2, policy=Policy.REQUIRE_ALL), rig.put(left=0.1), rig.put_both(0.3)
        rig.scheduler.set_member(0, is_enabled=False)
        for call in (strict, alone):  # while the member still computes
            with pytest.raises(MemberOff, match="an operator has disabled it") as failure:
                call.response()
            assert failure.value.member == "left"
        assert either.response().members[0].state is State.OFF


def test_a_trial_that_gets_stuck_has_failed_although_it_ends_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="twinfer_server.engine.circuit_breaker")
    with open_rig(tmp_path, breaker_failures=1, breaker_stall_seconds=0.1, breaker_retry_seconds=0.1) as rig:
        rig.left.error = ValueError("broken")
        assert rig.put_both(0.5).response().members[0].state is State.FAILED
        while rig.is_on("left"):
            rig.put(right=0.5).response()
        with rig.left.held():
            rig.left.error = None
            rig.left.entered.wait()
            while rig.scheduler.behind_seconds()["left"] < 0.15:
                assert rig.put_both(0.25).response().members[0].state is State.OFF
        while not rig.is_on("left"):
            rig.put(right=0.5).response()
        assert "member left stays off" in caplog.text
        assert "the trial failed: it took" in caplog.text


def test_requests_that_cannot_wait_are_answered_together_from_the_members_so_far(tmp_path: Path) -> None:
    with open_rig(tmp_path, "streams") as rig:
        with under_way(rig):
            calls = [rig.put(left=0.1, right=x / 10) for x in range(3)]
        assert {call.response().timings.batch_size for call in calls} == {3}
        rig.left.entered.clear()
        with rig.left.held():
            late = rig.put(left=0.1, right=0.2)
            rig.left.entered.wait()
            while not ((batch := rig.scheduler._in_flight.find(late.request)) and batch.done_members):
                threading.Event().wait(0.001)
            late.request.reply_by = 0.0
            requests, responses = rig.scheduler.respond_late(late.request)
            assert requests == [late.request]
            assert isinstance(responses[0], Response)
            assert [member.state for member in responses[0].members] == [State.LATE, State.OK]
        late.response()
        assert isinstance(rig.scheduler.respond_late(rig.make(left=0.1).request)[1][0], DeadlinePassed)


def test_a_late_request_is_not_answered_from_buffers_that_were_released(tmp_path: Path) -> None:
    with open_rig(tmp_path) as rig:
        call = rig.put_both(0.5)
        call.response()
        with rig.left.held():
            rig.put_both(0.25)
            rig.left.entered.wait()
            rig.scheduler.respond_late(call.request)  # its batch has ended: it is in none that is under way


@pytest.mark.parametrize("defect", ["forming", "completing"])
def test_a_defect_costs_a_batch_and_no_buffer(tmp_path: Path, defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_rig(tmp_path) as rig:
        broken = RuntimeError("a defect")
        for _ in range(3):  # more than there are sets of buffers
            with monkeypatch.context() as patch:
                if defect == "forming":
                    patch.setattr(rig.ensemble, "form_batch", raising(broken))
                else:
                    patch.setattr("twinfer_server.engine.completion.Completion.find_failures", raising(broken))
                call = rig.put_both(0.5)
                with suppress(InternalError):
                    call.response()
                if defect == "completing":
                    while rig.scheduler._in_flight:
                        threading.Event().wait(0.001)
        assert rig.put_both(0.25).response().prediction[0] == pytest.approx(chance(0.25), abs=1e-6)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def test_after_closing_no_thread_is_left_waiting(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with open_rig(tmp_path, "streams") as rig:
        rig.put_both(0.5).response()
        started = set(threading.enumerate()) - before
        assert {thread.name.partition("-")[0] for thread in started} == {"launch", "stream", "complete", "watchdog"}
    for thread in started:
        thread.join()

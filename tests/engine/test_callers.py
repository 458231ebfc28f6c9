"""Callers by name: limits of their own, fair shares of what is full, and turns; arrivals and times are the test's."""

import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import as_any
from twinfer_server.engine.admission import Admission
from twinfer_server.engine.callers import Allowance, Places
from twinfer_server.engine.preprocessor import Turns
from twinfer_server.engine.queue import RequestQueue
from twinfer_server.errors import Overloaded
from twinfer_server.settings import ServerSettings
from twinfer_server.types import CallerLimits, InferRequest, Policy, Priority, Request


def make_request(
    caller: str, ready_at: float = 0.0, priority: Priority = Priority.NORMAL, samples: int = 1, index: int = 0
) -> Request:  # fmt: skip
    inside = InferRequest({}, arrived_at=0.0, priority=priority, caller=caller)
    made = {0: (np.zeros((samples, 1), np.float32),)}
    return Request(inside, Policy.BEST_EFFORT, None, 1e6, as_any(Future()), samples=made, ready_at=ready_at, index=index)


# --- limits of one caller ---------------------------------------------------------------------------------------------


def test_a_caller_may_ask_for_a_second_of_its_rate_at_once_and_then_as_fast_as_its_rate() -> None:
    allowance = Allowance(CallerLimits(requests_per_second=4.0))
    for _ in range(4):
        allowance.check(100.0, 0, 0, 1, 1)
        allowance.spend(100.0, 1)
    with pytest.raises(Overloaded, match=r"requests_per_second: found 1 more, 0\.250 s too early; allowed: 4") as refused:
        allowance.check(100.0, 0, 0, 1, 1)
    assert refused.value.retry_after_seconds == pytest.approx(0.25)
    allowance.check(100.25, 0, 0, 1, 1)


@given(st.floats(0.1, 50.0), st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 5)), max_size=60))
def test_whatever_a_caller_asks_it_is_given_a_burst_and_its_rate_and_no_more(rate: float, calls: list[tuple[float, int]]) -> None:
    allowance, now, given_since_start = Allowance(CallerLimits(requests_per_second=rate)), 1000.0, 0
    for pause, requests in calls:
        now += pause
        try:
            allowance.check(now, 0, 0, requests, 1)
        except Overloaded as refused:
            allowance.check(now + (refused.retry_after_seconds or 0.0) + 1e-6, 0, 0, requests, 1)  # then it may
            continue
        allowance.spend(now, requests)
        given_since_start += requests
    largest = max((requests for _, requests in calls), default=0)
    assert given_since_start <= rate * (now - 1000.0) + max(rate, 1.0) + largest


@pytest.mark.parametrize(
    ("limits", "calls", "said"),
    [
        (CallerLimits(requests_in_flight=2), [(1, 10), (1, 10), (1, 10)], "requests_in_flight: found 3; allowed: 2"),
        (CallerLimits(bytes_in_flight=25), [(1, 10), (1, 10), (1, 10)], "bytes_in_flight: found 30; allowed: 25"),
    ],
)
def test_a_caller_over_its_own_limits_is_told_when_to_come_again(
    limits: CallerLimits, calls: list[tuple[int, int]], said: str
) -> None:
    admission = Admission(ServerSettings())
    admission.limit({"web": limits})
    for requests, size_bytes in calls[:-1]:
        admission.enter("web", size_bytes, requests)
    with pytest.raises(Overloaded, match=said) as refused:
        admission.enter("web", calls[-1][1], calls[-1][0])
    assert refused.value.retry_after_seconds
    admission.enter("batch", *reversed(calls[-1]))  # another one has no such limit
    admission.leave("web", 10)
    admission.enter("web", 10)


def test_a_call_that_alone_is_over_its_callers_limit_is_told_not_to_come_again() -> None:
    admission = Admission(ServerSettings())
    admission.limit({"web": CallerLimits(requests_in_flight=2)})
    with pytest.raises(Overloaded, match="found 3; allowed: 2") as refused:
        admission.enter("web", 1, 3)
    assert refused.value.retry_after_seconds is None


def test_limits_that_are_read_again_forget_nothing_of_what_was_asked() -> None:
    admission = Admission(ServerSettings())
    for _ in range(2):
        admission.limit({"web": CallerLimits(requests_per_second=0.001)})
        try:
            admission.enter("web", 1)
        except Overloaded:
            return
    pytest.fail("the second request of a caller that has one in 1000 s was let in")


# --- places -----------------------------------------------------------------------------------------------------------


def ask(places: Places, caller: str) -> bool:
    """Take a place if there is one for the caller."""
    if places.taken + 1 > places.allowed(caller, 1):
        return False
    places.take(caller, 1)
    return True


def test_callers_without_names_may_have_every_place() -> None:
    places = Places(16)
    assert [ask(places, "") for _ in range(17)] == [True] * 16 + [False]


def test_a_greedy_caller_leaves_the_last_places_to_the_others() -> None:
    places = Places(16)
    assert sum(ask(places, "greedy") for _ in range(100)) == 14
    assert ask(places, "web")
    assert not ask(places, "greedy")
    assert ask(places, "batch")


def test_as_its_requests_end_a_greedy_callers_places_go_to_the_others_up_to_equal_shares() -> None:
    places, refused = Places(32), Counter[str]()
    while ask(places, "greedy"):
        pass
    held = {"greedy": places.held_by("greedy"), "web": 0, "batch": 0, "app": 0}
    for _ in range(200):  # one request ends, and everyone asks again, the greedy one first and most
        ended = max(held, key=lambda name: held[name])
        places.give_back(ended, 1)
        held[ended] -= 1
        for name in ("greedy",) * 10 + ("web", "batch", "app"):
            if ask(places, name):
                held[name] += 1
            else:
                refused[name] += 1
    assert all(7 <= count <= 9 for count in held.values()), held
    assert sum(held.values()) <= 32


@given(st.lists(st.tuples(st.sampled_from(["greedy", "web", "app"]), st.booleans()), max_size=200))
def test_a_caller_within_its_share_is_refused_only_where_all_places_are_taken(steps: list[tuple[str, bool]]) -> None:
    places = Places(24)
    for caller, is_asking in steps:
        if not is_asking:
            if places.held_by(caller):
                places.give_back(caller, 1)
            continue
        is_within = places.held_by(caller) + 1 <= 24 // 3
        is_full = places.taken == 24
        if not ask(places, caller):
            assert is_full or not is_within
    assert places.taken == sum(map(places.held_by, ("greedy", "web", "app"))) <= 24


def test_a_full_server_refuses_who_has_more_than_its_share_and_admits_the_others() -> None:
    admission = Admission(ServerSettings(max_in_flight_requests=8))
    for _ in range(7):
        admission.enter("greedy", 1)
    with pytest.raises(Overloaded, match="7 requests are in flight; allowed: 7"):
        admission.enter("greedy", 1)
    admission.enter("web", 1)
    with pytest.raises(Overloaded, match="8 requests are in flight; allowed: 8"):
        admission.enter("web", 1)


def test_bytes_are_shared_as_requests_are() -> None:
    admission = Admission(ServerSettings(max_in_flight_bytes=800))
    for _ in range(7):
        admission.enter("greedy", 100)
    with pytest.raises(Overloaded, match="700 bytes are in flight and this call has 100; allowed: 700"):
        admission.enter("greedy", 100)
    admission.enter("web", 100)


# --- the queue --------------------------------------------------------------------------------------------------------


def take(queue: RequestQueue, count: int) -> list[Request]:
    """Take a batch of so many requests, as the scheduler does: the others are put back."""
    waiting = list(queue.take_in_order())
    for request in waiting[count:]:
        queue.put(request)
    queue.note_taken(waiting[:count])
    return waiting[:count]


def callers(requests: Iterable[Request]) -> str:
    return "".join(request.request.caller for request in requests)


def fill(queue: RequestQueue, names: str) -> None:
    for at, name in enumerate(names):
        queue.put(make_request(name, ready_at=float(at)))


def test_a_caller_that_came_first_with_many_requests_takes_turns_with_the_others() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    fill(queue, "gggggggggg" + "ab")
    assert [callers(take(queue, 4)) for _ in range(3)] == ["gabg", "gggg", "gggg"]
    assert len(queue) == 0


def test_turns_go_on_from_one_batch_to_the_next() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    fill(queue, "g" * 20)
    served = Counter[str]()
    for _ in range(6):
        fill(queue, "abb")  # a asks for less than its share, and b for more
        served.update(callers(take(queue, 3)))
    assert served == {"a": 6, "b": 6, "g": 6}


def test_a_caller_that_was_away_has_no_turns_in_hand() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    fill(queue, "aagg")
    fill(queue, "g" * 30)
    for _ in range(5):
        take(queue, 4)
    fill(queue, "a" * 12)
    assert Counter(callers(take(queue, 8)))["a"] in (4, 5)  # and not all 8


def test_a_new_caller_goes_before_what_waits_of_the_others_but_for_one_each() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    fill(queue, "ghghghghghgh")
    take(queue, 4)
    fill(queue, "n")
    assert "n" in callers(take(queue, 3))


def test_turns_are_of_samples_and_not_of_requests() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    for _ in range(9):
        queue.put(make_request("g", samples=3))
    for _ in range(9):
        queue.put(make_request("a"))
    assert Counter(callers(take(queue, 8))) == {"g": 2, "a": 6}
    assert Counter("".join(callers(take(queue, 1)) for _ in range(4))) == {"g": 1, "a": 3}


def test_priority_orders_the_requests_of_one_caller_and_gives_it_no_more_turns() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    for at in range(6):
        queue.put(make_request("g", at / 10, Priority.HIGH))
    queue.put(make_request("a", 0.1, Priority.LOW))
    queue.put(make_request("a", 0.2, Priority.HIGH))
    taken = take(queue, 4)
    assert callers(taken) == "gaga"
    assert [request.request.priority for request in taken if request.request.caller == "a"] == [Priority.HIGH, Priority.LOW]


def test_among_callers_that_have_had_as_much_priority_decides() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    queue.put(make_request("a", 0.0, Priority.NORMAL))
    queue.put(make_request("b", 0.5, Priority.HIGH))
    assert callers(take(queue, 2)) == "ba"


def test_the_rest_of_a_large_call_lets_its_callers_own_later_requests_pass() -> None:
    queue = RequestQueue(max_batch_size=2, batch_seconds=0.01)
    for index in range(4):
        queue.put(make_request("g", 0.0, index=index))
    queue.put(make_request("g", 0.5))
    queue.put(make_request("a", 0.6))
    assert [(request.request.caller, request.index) for request in take(queue, 6)] == [
        ("g", 0), ("a", 0), ("g", 1), ("g", 0), ("g", 2), ("g", 3),
    ]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from("ggggabc"), max_size=12), max_size=12), st.integers(1, 5))
def test_what_waits_all_the_time_is_served_as_often_as_anything_else_whatever_comes(rounds: list[list[str]], size: int) -> None:
    queue = RequestQueue(size, batch_seconds=0.01)
    fill(queue, "p" * (size * len(rounds) + 1))  # a caller that always has requests
    served: Counter[str] = Counter()
    for names in rounds:
        fill(queue, "".join(names))
        served.update(callers(take(queue, size)))
        assert all(served["p"] >= count - 1 for count in served.values()), served
    assert len(queue) == sum(map(len, rounds)) + 1


def test_answered_requests_take_no_turns() -> None:
    queue = RequestQueue(max_batch_size=4, batch_seconds=0.01)
    fill(queue, "aaagg")
    answered = [make_request(name, -1.0) for name in "ag"]
    for request in answered:
        queue.put(request)
    as_any(answered[0].response).set_result(None)
    assert len(queue) == 7
    as_any(answered[1].response).cancel()
    queue.drop_answered()
    assert len(queue) == 5
    queue.put(answered[0])
    assert callers(take(queue, 4)) == "agag"
    assert len(queue) == 1


# --- turns ------------------------------------------------------------------------------------------------------------


def test_calls_that_wait_for_a_thread_take_turns_by_caller() -> None:
    turns = Turns()
    for name in "gggab":
        turns.put([make_request(name)])
    assert callers(turns.take()[0] for _ in range(5)) == "gabgg"


def test_threads_take_each_turn_once() -> None:
    turns, taken = Turns(), list[Request]()
    requests = [make_request(name) for name in "gab" * 200]

    def work() -> None:
        for _ in range(200):
            taken.extend(turns.take())

    for request in requests:
        turns.put([request])
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(map(id, taken)) == set(map(id, requests))

"""Many requests of the Python client: in one call, and over one RPC stream."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import PATIENCE_SECONDS
from tests.scripted import ANSWER, Caller, Context, Replies, Requests, ScriptedService, answer_stream, serving, stream_answer
from twinfer import AsyncClient, Client, Outcome, errors, make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import error_pb2


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": str(number)} for number in range(count)]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_with_an_outcome_per_request_in_their_order(caller: Caller, service: ScriptedService) -> None:
    requests = iter([{"text": "0"}, {"text": "bad"}, make_request({"text": "2"}, request_id="mine", policy="require_all")])
    outcomes: list[Outcome] = caller.call("infer_batch", service.address, requests, policy="best_effort")
    assert len(service.seconds_left) == 1
    assert [(outcome.index, outcome.request_id) for outcome in outcomes] == [(0, "0"), (1, "1"), (2, "mine")]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.InvalidInput, type(None)]
    assert outcomes[2].response.label == "five"
    with pytest.raises(errors.InvalidInput, match=r"inputs\['text'\]: no"):
        _ = outcomes[1].response
    best_effort, require_all = pb.POLICY_BEST_EFFORT, pb.POLICY_REQUIRE_ALL
    assert [request.options.policy for request in service.requests] == [best_effort, best_effort, require_all]


def test_a_batch_over_the_limit_or_without_requests_is_not_sent_and_one_of_files_is(
    caller: Caller, service: ScriptedService, refused_address: str, tmp_path: Path
) -> None:
    assert caller.call("infer_batch", refused_address, []) == []
    with pytest.raises(errors.MessageTooLarge, match="max_message_bytes"):
        caller.call("infer_batch", service.address, [{"image": bytes(20 * 2**20)}] * 2)
    assert service.requests == []
    (tmp_path / "five.png").write_bytes(b"pixels")
    caller.call("infer_batch", service.address, [{"text": "0"}, {"image": tmp_path / "five.png"}])
    assert service.requests[1].inputs["image"].image == b"pixels"


def test_a_batch_that_is_answered_in_part_is_an_error(caller: Caller) -> None:
    class Forgetful(ScriptedService):
        def BatchInfer(self, request: pb.BatchInferRequest, context: Context) -> Any:
            return pb.BatchInferResponse(results=[{"response": ANSWER}])

    with serving(Forgetful()) as address, pytest.raises(errors.InternalError, match="answered 1 requests of 2"):
        caller.call("infer_batch", address, texts(2))


# --- RPC streams ------------------------------------------------------------------------------------------------------


def test_outcomes_come_as_the_server_is_done_with_them(caller: Caller, service: ScriptedService) -> None:
    def backwards(requests: Requests, context: Context) -> Replies:
        yield from reversed([stream_answer(one.request_id) for one in requests])

    service.stream = backwards
    outcomes = caller.infer_many(service.address, texts(5))
    assert [(outcome.index, outcome.request_id) for outcome in outcomes] == [(n, str(n)) for n in (4, 3, 2, 1, 0)]
    assert {outcome.response.label for outcome in outcomes} == {"five"}


def test_a_failed_request_is_an_outcome_and_the_stream_lives_on(caller: Caller, service: ScriptedService) -> None:
    def odd_ones_fail(requests: Requests, context: Context) -> Replies:
        error = error_pb2.Error(code=3, reason="REASON_INVALID_INPUT", text="odd")
        for one in requests:
            is_odd = int(one.inputs["text"].text) % 2
            yield pb.InferStreamResponse(request_id=one.request_id, error=error) if is_odd else stream_answer(one.request_id)

    service.stream = odd_ones_fail
    outcomes = caller.infer_many(service.address, texts(4))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.InvalidInput] * 2
    with pytest.raises(errors.InvalidInput, match="odd"):
        _ = outcomes[1].response


@pytest.mark.parametrize("window", [1, 7])
def test_no_more_requests_are_taken_than_the_window_holds(caller: Caller, service: ScriptedService, window: int) -> None:
    in_all = 40

    def whole_windows(requests: Requests, context: Context) -> Replies:
        waiting: list[str] = []
        for one in requests:
            waiting.append(one.request_id)
            if len(waiting) == window:
                # Nothing is answered until the window is full, so a client that filled less of it would hang.
                yield from map(stream_answer, waiting)
                waiting.clear()
        yield from map(stream_answer, waiting)

    service.stream = whole_windows
    seen: list[Outcome] = []
    taken_ahead: list[int] = []

    def requests() -> Iterator[dict[str, str]]:
        for number in range(in_all):
            taken_ahead.append(number + 1 - len(seen))
            yield {"text": str(number)}

    # With answers in whole windows and one request taken for each that is yielded, the last windows close at the end.
    outcomes = caller.infer_many(service.address, requests(), seen, window=window, stream_timeout=PATIENCE_SECONDS)
    assert sorted(outcome.index for outcome in outcomes) == list(range(in_all))
    assert max(taken_ahead) == window


def test_requests_carry_their_own_options_or_those_of_the_call(caller: Caller, service: ScriptedService) -> None:
    own = make_request({"text": "1"}, request_id="mine", timeout=2.5, policy="require_all")
    outcomes = caller.infer_many(service.address, [{"text": "0"}, own], timeout=5, policy="best_effort")
    first, second = service.requests
    assert [outcome.request_id for outcome in outcomes] == ["0", "mine"]
    assert (first.options.timeout.seconds, first.options.policy) == (5, pb.POLICY_BEST_EFFORT)
    assert (second, own.request_id) == (own, "mine")
    without_timeout = make_request({"text": "0"})
    caller.infer_many(service.address, [without_timeout])
    assert service.requests[2].options.timeout.seconds == 30  # the client's
    assert without_timeout == make_request({"text": "0"})  # the caller's own message is left as it was


def test_a_request_over_the_limit_is_an_outcome_of_its_own(caller: Caller, service: ScriptedService) -> None:
    requests = [{"text": "0"}, {"image": bytes(33 * 2**20)}, {"text": "2"}]
    # With a window of one, a request that is never answered must not hold up those behind it.
    outcomes = caller.infer_many(service.address, requests, window=1)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.MessageTooLarge, type(None)]
    assert len(service.requests) == 2


def test_no_requests_are_no_outcomes_and_what_requests_raise_comes_out_as_it_is(
    caller: Caller, service: ScriptedService, tmp_path: Path
) -> None:
    assert caller.infer_many(service.address, []) == []
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        caller.infer_many(service.address, [{"text": "0"}, {"image": tmp_path / "absent.png"}])


def never(requests: Requests, context: Context) -> Replies:
    list(requests)
    yield from ()


def leave(requests: Requests, context: Context) -> Replies:
    yield stream_answer(next(requests).request_id)  # and the one or two behind it are left


def invent(requests: Requests, context: Context) -> Replies:
    next(requests)
    yield stream_answer("invented")


def drain(requests: Requests, context: Context) -> Replies:
    yield stream_answer(next(requests).request_id)
    message = error_pb2.Error(code=14, reason="REASON_DRAINING", text="shutting down")
    context.set_trailing_metadata((("twinfer-error-bin", message.SerializeToString()),))
    context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")


SAME = make_request({}, request_id="same")


@pytest.mark.parametrize(
    ("script", "requests", "kind", "said"),
    [
        pytest.param(never, [SAME] * 2, ValueError, "request 1 has the request_id 'same', as has request 0", id="two with one id"),
        pytest.param(leave, texts(200), errors.Unavailable, r"too early; requests unanswered: [12]\.", id="ends too early"),
        pytest.param(invent, texts(1), errors.InternalError, "not sent: 'invented'", id="answers what was not sent"),
        pytest.param(drain, texts(200), errors.Draining, "shutting down", id="fails with a reason"),
    ],
)
def test_a_stream_that_cannot_go_on_raises_why(
    caller: Caller, service: ScriptedService, script: Any, requests: Any, kind: type[Exception], said: str
) -> None:
    service.stream = script
    seen: list[Outcome] = []
    with pytest.raises(kind, match=said):
        caller.infer_many(service.address, requests, seen, window=2)
    assert [outcome.index for outcome in seen] == ([0] if script in (leave, drain) else [])


# --- leaving and trickling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_leaving_the_loop_ends_the_stream(service: ScriptedService, kind: str) -> None:
    left = threading.Event()

    def script(requests: Requests, context: Context) -> Replies:
        context.add_callback(left.set)
        yield from answer_stream(requests, context)

    async def run() -> None:
        async with AsyncClient(service.address) as client, aclosing(client.infer_many(texts(200), window=2)) as outcomes:
            assert (await anext(outcomes)).index == 0

    service.stream = script
    if kind == "async":
        asyncio.run(run())
        assert left.wait(PATIENCE_SECONDS)
        return
    with Client(service.address) as client:
        outcomes = client.infer_many(texts(200), window=2)
        assert next(outcomes).index == 0
        outcomes.close()
        assert left.wait(PATIENCE_SECONDS)  # while the client lives


def test_the_async_client_answers_requests_that_trickle(service: ScriptedService) -> None:
    async def run() -> list[int]:
        answered = asyncio.Event()

        async def requests() -> AsyncIterator[dict[str, str]]:
            for number in range(3):
                answered.clear()
                yield {"text": str(number)}
                await answered.wait()  # the next request exists only once this one is answered

        indices = []
        async with AsyncClient(service.address) as client, asyncio.timeout(PATIENCE_SECONDS):
            async for outcome in client.infer_many(requests()):
                indices.append(outcome.index)
                answered.set()
        return indices

    assert asyncio.run(run()) == [0, 1, 2]

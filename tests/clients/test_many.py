"""Many requests of the Python client: in one call, and over one RPC stream."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import PATIENCE_SECONDS
from tests.scripted import ANSWER, Caller, Context, ScriptedService, serving, stream_answer
from twinfer import AsyncClient, Client, Outcome, errors, make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import ensemble_service_pb2_grpc, error_pb2


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": str(number)} for number in range(count)]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_with_an_outcome_per_request_in_their_order(caller: Caller) -> None:
    service = ScriptedService()
    own = make_request({"text": "2"}, request_id="mine", policy="require_all")
    with serving(service) as address:
        requests = iter([{"text": "0"}, {"text": "bad"}, own])
        outcomes: list[Outcome] = caller.call("infer_batch", address, requests, policy="best_effort")
    assert len(service.seconds_left) == 1
    assert [(outcome.index, outcome.request_id) for outcome in outcomes] == [(0, "0"), (1, "1"), (2, "mine")]
    assert [outcome.error and (type(outcome.error), outcome.error.text) for outcome in outcomes] == [
        None, (errors.InvalidInput, "inputs['text']: no"), None
    ]  # fmt: skip
    assert outcomes[2].response.label == "five"
    with pytest.raises(errors.InvalidInput):
        outcomes[1].response  # noqa: B018
    best_effort, require_all = pb.POLICY_BEST_EFFORT, pb.POLICY_REQUIRE_ALL
    assert [request.options.policy for request in service.requests] == [best_effort, best_effort, require_all]


def test_a_batch_of_files_is_read_on_a_thread(caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "five.png").write_bytes(b"pixels")
    service = ScriptedService()
    with serving(service) as address:
        caller.call("infer_batch", address, [{"text": "0"}, {"image": tmp_path / "five.png"}])
    assert service.requests[1].inputs["image"].image == b"pixels"


def test_a_batch_over_the_limit_is_not_sent(caller: Caller) -> None:
    service = ScriptedService()
    with serving(service) as address, pytest.raises(errors.MessageTooLarge, match="max_message_bytes"):
        caller.call("infer_batch", address, [{"image": bytes(20 * 2**20)}] * 2)
    assert service.requests == []


def test_a_batch_without_requests_is_no_call(caller: Caller, refused_address: str) -> None:
    assert caller.call("infer_batch", refused_address, []) == []


def test_a_batch_that_is_answered_in_part_is_an_error(caller: Caller) -> None:
    class Forgetful(ScriptedService):
        def BatchInfer(self, request: pb.BatchInferRequest, context: Context) -> Any:
            return pb.BatchInferResponse(results=[{"response": ANSWER}])

    with serving(Forgetful()) as address, pytest.raises(errors.InternalError, match="answered 1 requests of 2"):
        caller.call("infer_batch", address, texts(2))


# --- RPC streams --------------------------------------------------------------------------------------------------------


Requests = Iterator[pb.InferRequest]
Replies = Iterator[pb.InferStreamResponse]


class Stream(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """Handles a stream as the test says."""

    def __init__(self, script: Callable[[Requests, Context], Replies]) -> None:
        self.script = script

    def InferStream(self, request_iterator: Iterator[pb.InferStreamRequest], context: Context) -> Replies:
        return self.script((message.request for message in request_iterator), context)


def test_outcomes_come_as_the_server_is_done_with_them(caller: Caller) -> None:
    def backwards(requests: Requests, context: Context) -> Replies:
        yield from reversed([stream_answer(one.request_id) for one in requests])

    with serving(Stream(backwards)) as address:
        outcomes = caller.infer_many(address, texts(5))
    assert [(outcome.index, outcome.request_id) for outcome in outcomes] == [(n, str(n)) for n in (4, 3, 2, 1, 0)]
    assert {outcome.response.label for outcome in outcomes} == {"five"}


def test_a_failed_request_is_an_outcome_and_the_stream_lives_on(caller: Caller) -> None:
    def odd_ones_fail(requests: Requests, context: Context) -> Replies:
        for one in requests:
            if int(one.inputs["text"].text) % 2:
                error = error_pb2.Error(code=3, reason="REASON_INVALID_INPUT", text="odd")
                yield pb.InferStreamResponse(request_id=one.request_id, error=error)
            else:
                yield stream_answer(one.request_id)

    with serving(Stream(odd_ones_fail)) as address:
        outcomes = caller.infer_many(address, texts(4))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.InvalidInput] * 2
    with pytest.raises(errors.InvalidInput, match="odd"):
        _ = outcomes[1].response


@pytest.mark.parametrize("window", [1, 7])
def test_no_more_requests_are_taken_than_the_window_holds(caller: Caller, window: int) -> None:
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

    seen: list[Outcome] = []
    taken_ahead: list[int] = []

    def requests() -> Iterator[dict[str, str]]:
        for number in range(in_all):
            taken_ahead.append(number + 1 - len(seen))
            yield {"text": str(number)}

    with serving(Stream(whole_windows)) as address:
        # With answers in whole windows and one request taken for each that is yielded, the last windows close at the end.
        outcomes = caller.infer_many(address, requests(), seen, window=window, stream_timeout=PATIENCE_SECONDS)
    assert sorted(outcome.index for outcome in outcomes) == list(range(in_all))
    assert max(taken_ahead) == window


def test_requests_carry_their_own_options_or_those_of_the_call(caller: Caller) -> None:
    service = ScriptedService()
    own = make_request({"text": "1"}, request_id="mine", timeout=2.5, policy="require_all")
    with serving(service) as address:
        outcomes = caller.infer_many(address, [{"text": "0"}, own], timeout=5, policy="best_effort")
    first, second = service.requests
    assert [outcome.request_id for outcome in outcomes] == ["0", "mine"]
    assert (first.options.timeout.seconds, first.options.policy) == (5, pb.POLICY_BEST_EFFORT)
    assert second == own
    assert own.request_id == "mine"


def test_a_request_without_a_timeout_gets_the_clients(caller: Caller) -> None:
    service = ScriptedService()
    request = make_request({"text": "0"})
    with serving(service) as address:
        caller.infer_many(address, [request])
    assert service.requests[0].options.timeout.seconds == 30
    assert request == make_request({"text": "0"})  # the caller's own message is left as it was


def test_a_request_over_the_limit_is_an_outcome_of_its_own(caller: Caller) -> None:
    service = ScriptedService()
    requests = [{"text": "0"}, {"image": bytes(33 * 2**20)}, {"text": "2"}]
    with serving(service) as address:
        # With a window of one, a request that is never answered must not hold up those behind it.
        outcomes = caller.infer_many(address, requests, window=1)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.MessageTooLarge, type(None)]
    assert len(service.requests) == 2


def test_what_the_callers_requests_raise_comes_out_as_it_is(caller: Caller, tmp_path: Path) -> None:
    requests = [{"text": "0"}, {"image": tmp_path / "absent.png"}]
    with serving(ScriptedService()) as address, pytest.raises(FileNotFoundError, match=r"absent\.png"):
        caller.infer_many(address, requests)


def test_two_requests_under_way_with_one_id_are_refused(caller: Caller) -> None:
    requests = [make_request({}, request_id="same"), make_request({}, request_id="same")]

    def never(requests: Requests, context: Context) -> Replies:
        list(requests)
        yield from ()

    with (
        serving(Stream(never)) as address,
        pytest.raises(ValueError, match="request 1 has the request_id 'same', as has request 0"),
    ):
        caller.infer_many(address, requests)


def test_a_stream_that_fails_raises_its_reason(caller: Caller) -> None:
    def drain(requests: Requests, context: Context) -> Replies:
        yield stream_answer(next(requests).request_id)
        message = error_pb2.Error(code=14, reason="REASON_DRAINING", text="shutting down")
        context.set_trailing_metadata((("twinfer-error-bin", message.SerializeToString()),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")

    seen: list[Outcome] = []
    with serving(Stream(drain)) as address, pytest.raises(errors.Draining, match="shutting down"):
        caller.infer_many(address, texts(200), seen, window=2)
    assert [outcome.index for outcome in seen] == [0]


def test_a_stream_that_ends_too_early_says_how_many_requests_are_unanswered(caller: Caller) -> None:
    def leave(requests: Requests, context: Context) -> Replies:
        yield stream_answer(next(requests).request_id)  # and the one or two behind it are left

    with (
        serving(Stream(leave)) as address,
        pytest.raises(errors.Unavailable, match=r"too early; requests unanswered: [12]\."),
    ):
        caller.infer_many(address, texts(200), window=2)


def test_an_answer_to_a_request_that_was_not_sent_is_an_error(caller: Caller) -> None:
    def invent(requests: Requests, context: Context) -> Replies:
        next(requests)
        yield stream_answer("invented")

    with serving(Stream(invent)) as address, pytest.raises(errors.InternalError, match="not sent: 'invented'"):
        caller.infer_many(address, texts(1))


def test_no_requests_are_no_outcomes(caller: Caller) -> None:
    with serving(ScriptedService()) as address:
        assert caller.infer_many(address, []) == []


def cancellable() -> tuple[Stream, threading.Event]:
    """Return a stream that answers every request at once, and an event that is set when its caller has left."""
    left = threading.Event()

    def script(requests: Requests, context: Context) -> Replies:
        context.add_callback(left.set)
        yield from (stream_answer(one.request_id) for one in requests)

    return Stream(script), left


def test_leaving_the_loop_ends_the_stream() -> None:
    service, left = cancellable()
    with serving(service) as address, Client(address) as client:
        outcomes = client.infer_many(texts(200), window=2)
        assert next(outcomes).index == 0
        outcomes.close()
        assert left.wait(PATIENCE_SECONDS)


def test_leaving_the_async_loop_ends_the_stream() -> None:
    service, left = cancellable()

    async def run(address: str) -> None:
        async with AsyncClient(address) as client, aclosing(client.infer_many(texts(200), window=2)) as outcomes:
            assert (await anext(outcomes)).index == 0

    with serving(service) as address:
        asyncio.run(run(address))
        assert left.wait(PATIENCE_SECONDS)


def test_the_async_client_answers_requests_that_trickle() -> None:
    async def run(address: str) -> list[int]:
        answered = asyncio.Event()

        async def requests() -> AsyncIterator[dict[str, str]]:
            for number in range(3):
                answered.clear()
                yield {"text": str(number)}
                await answered.wait()  # the next request exists only once this one is answered

        indices = []
        async with AsyncClient(address) as client, asyncio.timeout(PATIENCE_SECONDS):
            async for outcome in client.infer_many(requests()):
                indices.append(outcome.index)
                answered.set()
        return indices

    with serving(ScriptedService()) as address:
        assert asyncio.run(run(address)) == [0, 1, 2]

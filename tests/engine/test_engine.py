"""The engine: what becomes of a request under each policy, and of the engine under load, in a drain and when callers go away."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from tests.models import Opinion, chance, load_members, number, write_members
from twinfer_server.device import CpuDevice
from twinfer_server.engine import Engine
from twinfer_server.errors import (
    DeadlinePassed,
    Draining,
    InternalError,
    InvalidInput,
    InvalidOption,
    MemberFailed,
    MissingInput,
    NotFinite,
    NothingToFuse,
    Overloaded,
    Reason,
    Stage,
    TwinferError,
    UnknownMember,
)
from twinfer_server.executor import Ensemble
from twinfer_server.settings import ServerSettings
from twinfer_server.types import InferRequest, Policy, Response, State

NAN = -1000.0
"""An opinion has no logarithm of it."""


class Pair:
    """Two opinions and an engine for them."""

    def __init__(self, ensemble: Ensemble, left: Opinion, right: Opinion) -> None:
        self.ensemble = ensemble
        self.left, self.right = left, right
        self.engine: Engine

    async def ask(self, policy: Policy | None = None, *, size_bytes: int = 1, **options: Any) -> Response:
        """Ask with a number for each member among `options`."""
        xs = {name: options.pop(name) for name in ("left", "right") if name in options}
        request = InferRequest({name: number(x) for name, x in xs.items()}, time.monotonic(), policy=policy, **options)
        return await self.engine.infer(request, size_bytes)


Scenario = Callable[[Pair], Coroutine[Any, Any, None]]


@pytest.fixture(params=["serial", "streams"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    left, right = Opinion(), Opinion()
    folder = write_members(tmp_path, {"left": left, "right": right}, 'policy = "best_effort"')
    # Members that are expected to take long: no second batch is staged behind one that is held.
    return Pair(load_members(folder, request.param, seconds=1000.0), left, right)


@asynccontextmanager
async def serving(pair: Pair, **settings: Any) -> AsyncIterator[None]:
    # However long a member is held, its breaker stays closed.
    read = ServerSettings(**({"default_timeout_seconds": 1e6, "breaker_stall_seconds": 1e6} | settings))
    pair.engine = Engine(pair.ensemble, read)
    pair.engine.start()
    try:
        yield
        await pair.engine.drain()
    finally:
        pair.left.release()
        pair.right.release()
        pair.engine.close()


def states(answer: Response) -> list[State]:
    return [member.state for member in answer.members]


def test_under_require_all_a_failure_names_member_stage_and_cause(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            pair.right.error = ValueError("no such number")
            with pytest.raises(MemberFailed, match="the member raised ValueError; the server's log has it") as failure:
                await pair.ask(Policy.REQUIRE_ALL, left=1, right=2)
            assert (failure.value.member, failure.value.stage) == ("right", Stage.MEMBER)
            assert (failure.value.code, failure.value.reason) == (StatusCode.INTERNAL, Reason.MEMBER_FAILED)
            pair.right.error = None
            with pytest.raises(NotFinite) as failure_of_row:
                await pair.ask(Policy.REQUIRE_ALL, left=1, right=NAN)
            assert (failure_of_row.value.member, failure_of_row.value.stage) == ("right", Stage.MEMBER)

    asyncio.run(scenario())


class LostDevice(CpuDevice):
    """A device on which an error sticks, as an illegal access does on a GPU."""

    def find_loss(self) -> str:
        return "an illegal memory access was encountered"


def test_a_lost_device_answers_what_it_can_and_then_says_that_it_is_lost(tmp_path: Path) -> None:
    left, right = Opinion(), Opinion()
    folder = write_members(tmp_path, {"left": left, "right": right}, 'policy = "best_effort"')
    pair = Pair(load_members(folder, "serial", LostDevice(streams=2)), left, right)

    async def scenario() -> None:
        async with serving(pair):
            assert states(await pair.ask(left=1, right=2)) == [State.OK, State.OK]
            assert pair.engine.loss == ""
            left.error = RuntimeError("CUDA error")
            assert states(await pair.ask(left=1, right=2)) == [State.FAILED, State.OK]
            losses = [""]
            while not losses[-1]:  # it is found out after the rows have been answered
                losses.append(pair.engine.loss)
                await asyncio.sleep(0)
            assert losses[-1] == "an illegal memory access was encountered"

    asyncio.run(scenario())


def test_under_require_all_a_missing_input_is_the_callers_fault(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            with pytest.raises(MissingInput, match="right"):
                await pair.ask(Policy.REQUIRE_ALL, left=1)
            assert states(await pair.ask(Policy.BEST_EFFORT, left=1)) == [State.OK, State.NO_INPUT]

    asyncio.run(scenario())


def test_under_best_effort_the_others_share_the_weight_of_a_failed_member(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            answer = await pair.ask(left=1, right=NAN)
            assert states(answer) == [State.OK, State.FAILED]
            assert [member.weight for member in answer.members] == pytest.approx([1, 0])
            assert isinstance(answer.members[1].error, NotFinite)
            assert answer.is_degraded
            assert answer.disagreement is None
            assert answer.prediction[0] == pytest.approx(chance(1), abs=1e-6)

    asyncio.run(scenario())


def test_an_unset_policy_is_the_ensembles_own(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            assert (await pair.ask(None, left=1, right=NAN)).is_degraded

    asyncio.run(scenario())


def test_nan_fails_its_request_and_not_the_batch(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            with pair.left.held():
                first = asyncio.create_task(pair.ask(left=0, right=0))
                await asyncio.to_thread(pair.left.entered.wait)
                tasks = [asyncio.create_task(pair.ask(left=x, right=NAN if x == 2 else x)) for x in (1, 2, 3)]
                while pair.engine.requests_waiting < len(tasks):
                    await asyncio.sleep(0)
            assert not (await first).is_degraded
            good, bad, other = [await task for task in tasks]
            assert {answer.timings.batch_size for answer in (good, bad, other)} == {3}
            assert states(bad) == [State.OK, State.FAILED]
            assert states(good) == states(other) == [State.OK, State.OK]
            assert good.prediction[0] == pytest.approx(chance(1), abs=1e-6)
            assert other.prediction[0] == pytest.approx(chance(3), abs=1e-6)

    asyncio.run(scenario())


def test_with_no_member_left_the_request_fails_and_says_why(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            with pytest.raises(NothingToFuse, match=r"left: .*NaN.*; right: .*NaN"):
                await pair.ask(left=NAN, right=NAN)
            pair.left.error = pair.right.error = RuntimeError("broken")
            with pytest.raises(NothingToFuse, match=r"left: .*RuntimeError.*; right: .*RuntimeError"):
                await pair.ask(left=1, right=1)
            with pytest.raises(MemberFailed) as failure:
                await pair.ask(left=1)
            assert failure.value.member == "left"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("weights", "share"),
    [({"left": 3.0, "right": 1.0}, 0.75), ({"left": 1.0}, 1.0), ({"right": 2.0}, 0.0), ({}, 0.5)],
    ids=["three to one", "one member alone", "the other alone", "the ensemble's own"],
)
def test_a_request_can_bring_its_own_weights(pair: Pair, weights: Mapping[str, float], share: float) -> None:
    async def scenario() -> None:
        async with serving(pair):
            answer = await pair.ask(left=1, right=-2, fusion_weights=weights)
            assert answer.prediction[0] == pytest.approx(share * chance(1) + (1 - share) * chance(-2), abs=1e-6)
            assert [member.weight for member in answer.members] == pytest.approx([share, 1 - share])

    asyncio.run(scenario())


def test_weights_for_an_absent_member_go_to_the_others(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            answer = await pair.ask(left=1, right=NAN, fusion_weights={"right": 1.0})
            assert answer.prediction[0] == pytest.approx(chance(1), abs=1e-6)
            assert answer.is_degraded

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ({"left": math.nan}, InvalidOption),
        ({"left": -1.0}, InvalidOption),
        ({"left": math.inf}, InvalidOption),
        ({"left": 0.0, "right": 0.0}, InvalidOption),
        ({"middle": 1.0}, UnknownMember),
    ],
    ids=["NaN", "negative", "infinite", "nothing but zeros", "of no member"],
)
def test_weights_that_cannot_be_used_are_refused(pair: Pair, weights: Mapping[str, float], error: type[TwinferError]) -> None:
    async def scenario() -> None:
        async with serving(pair):
            with pytest.raises(error, match="fusion_weights"):
                await pair.ask(left=1, right=1, fusion_weights=weights)

    asyncio.run(scenario())


def test_requests_over_the_limit_are_refused_with_a_hint_when_to_retry(pair: Pair) -> None:
    async def scenario() -> None:
        began = time.monotonic()
        async with serving(pair, max_in_flight_requests=3):
            for _ in range(2):  # before the server knows how fast it is, and after
                with pair.left.held():
                    tasks = [asyncio.create_task(pair.ask(left=1, right=1)) for _ in range(3)]
                    await asyncio.to_thread(pair.left.entered.wait)
                    with pytest.raises(Overloaded, match="3 requests are in flight; allowed: 3") as refusal:
                        await pair.ask(left=1, right=1)
                    elapsed = time.monotonic() - began
                    # A server cannot have been slower than it is old.
                    assert 0.01 <= (refusal.value.retry_after_seconds or 0.0) <= max(0.01, 3 * elapsed)
                for task in tasks:
                    assert not (await task).is_degraded

    asyncio.run(scenario())


def test_bytes_over_the_limit_are_refused(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair, max_in_flight_bytes=100):
            with pair.left.held():
                task = asyncio.create_task(pair.ask(left=1, right=1, size_bytes=60))
                await asyncio.to_thread(pair.left.entered.wait)
                with pytest.raises(Overloaded, match="60 bytes are in flight and this call has 41; allowed: 100"):
                    await pair.ask(left=1, right=1, size_bytes=41)
            await task
            await pair.ask(left=1, right=1, size_bytes=41)

    asyncio.run(scenario())


def test_a_drain_answers_what_is_in_flight_and_admits_nothing_more(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            with pair.left.held():
                tasks = [asyncio.create_task(pair.ask(left=x, right=x)) for x in (1, 2, 3)]
                await asyncio.to_thread(pair.left.entered.wait)
                drain = asyncio.create_task(pair.engine.drain())
                await asyncio.sleep(0)
                with pytest.raises(Draining):
                    await pair.ask(left=1, right=1)
                assert not drain.done()
            for x, task in zip((1, 2, 3), tasks, strict=True):
                assert (await task).prediction[0] == pytest.approx(chance(x), abs=1e-6)
            await drain

    asyncio.run(scenario())


def test_a_caller_who_goes_away_takes_its_request_out_of_the_queue(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair, max_in_flight_requests=2):
            with pair.left.held():
                computing = asyncio.create_task(pair.ask(left=1, right=1))
                await asyncio.to_thread(pair.left.entered.wait)
                waiting = asyncio.create_task(pair.ask(left=2, right=2))
                while not pair.engine.requests_waiting:
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait({waiting})
                while pair.engine.requests_waiting:
                    await asyncio.sleep(0)
                another = asyncio.create_task(pair.ask(left=3, right=3))  # there is room again
                computing.cancel()
                await asyncio.wait({computing})
            assert (await another).prediction[0] == pytest.approx(chance(3), abs=1e-6)
            assert pair.left.batches == [[1], [3]]

    asyncio.run(scenario())


def test_a_request_whose_deadline_has_passed_is_not_admitted(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            with pytest.raises(DeadlinePassed, match="when the request arrived"):
                await pair.ask(left=1, right=1, deadline=time.monotonic() - 1)
            with pytest.raises(InvalidOption, match="timeout"):
                await pair.ask(left=1, right=1, timeout_seconds=0.0)
            assert pair.left.batches == []

    asyncio.run(scenario())


def test_a_request_that_its_members_cannot_answer_in_time_fails_at_once_and_is_never_computed(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            for policy in Policy:
                with pytest.raises(DeadlinePassed, match=r"takes at least 1000\.000 s, longer than the request can wait"):
                    await pair.ask(policy, left=2, right=2, timeout_seconds=100.0)
            await pair.ask(left=3, right=3)
            assert [2] not in pair.left.batches

    asyncio.run(scenario())


def test_an_input_that_cannot_be_used_fails_its_request_alone(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            good, bad = await asyncio.gather(
                pair.ask(left=1, right=1), pair.ask(left=math.nan, right=1), return_exceptions=True
            )  # fmt: skip
            assert isinstance(good, Response)
            assert isinstance(bad, InvalidInput)
            assert not isinstance(bad, InternalError)

    asyncio.run(scenario())


def test_a_request_that_comes_after_a_large_call_goes_before_what_no_batch_has_held_of_it(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            requests = [InferRequest({"left": number(x), "right": number(x)}, time.monotonic()) for x in range(14)]
            with pair.left.held():
                batch = asyncio.create_task(pair.engine.infer_batch(requests, 1))
                await asyncio.to_thread(pair.left.entered.wait)
                while pair.engine.requests_waiting < 10:
                    await asyncio.sleep(0)
                singles = [asyncio.create_task(pair.ask(left=x, right=x)) for x in (20, 21)]
                while pair.engine.requests_waiting < 12:
                    await asyncio.sleep(0)
            await asyncio.gather(*singles)
            answers = await batch
            assert pair.left.batches == [[0, 1, 2, 3], [20, 21, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13]]
            for x, answer in enumerate(answers):
                assert isinstance(answer, Response)
                assert answer.prediction[0] == pytest.approx(chance(x), abs=1e-6)

    asyncio.run(scenario())


def test_the_requests_of_a_call_share_a_batch_and_a_bad_one_leaves_no_hole(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            requests = [InferRequest({"left": number(x), "right": number(-x)}, time.monotonic()) for x in range(4)]
            bad = InferRequest({"left": number(math.nan), "right": number(0)}, time.monotonic())
            with pair.left.held():
                computing = asyncio.create_task(pair.ask(left=9, right=9))
                await asyncio.to_thread(pair.left.entered.wait)
                batch = asyncio.create_task(pair.engine.infer_batch([*requests[:2], bad, *requests[2:]], 1))
                while pair.engine.requests_waiting < 4:
                    await asyncio.sleep(0)
            await computing
            first, second, failure, third, fourth = await batch
            assert isinstance(failure, InvalidInput)
            for x, answer in enumerate((first, second, third, fourth)):
                assert isinstance(answer, Response)
                assert answer.timings.batch_size == 4
                assert answer.prediction[0] == pytest.approx(chance(x, -x), abs=1e-6)

    asyncio.run(scenario())


def test_a_request_of_a_call_may_have_less_time_than_the_others(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            inputs = {"left": number(1), "right": number(1)}
            now = time.monotonic()
            requests = [InferRequest(inputs, now), InferRequest(inputs, now, timeout_seconds=0.1), InferRequest(inputs, now)]
            with pair.left.held():
                computing = asyncio.create_task(pair.ask(left=9, right=9))
                await asyncio.to_thread(pair.left.entered.wait)
                batch = asyncio.create_task(pair.engine.infer_batch(requests, 1))
                with pytest.raises(DeadlinePassed):
                    await pair.ask(left=2, right=2, timeout_seconds=0.2)
                assert not batch.done()
            await computing
            first, hasty, last = await batch
            assert isinstance(hasty, DeadlinePassed)
            assert isinstance(first, Response)
            assert isinstance(last, Response)

    asyncio.run(scenario())


def test_no_member_is_entered_by_two_batches_at_once(pair: Pair) -> None:
    async def scenario() -> None:
        async with serving(pair):
            answers = await asyncio.gather(*(pair.ask(left=x / 100, right=-x / 100) for x in range(100)))
            for x, answer in enumerate(answers):
                assert answer.prediction[0] == pytest.approx(chance(x / 100, -x / 100), abs=1e-6)
            assert pair.left.most_at_once == pair.right.most_at_once == 1
            assert sum(map(len, pair.left.batches)) == 100

    asyncio.run(scenario())

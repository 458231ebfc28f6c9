"""The engine behind shared memory: what is special about the way there and back. That it answers alike, test_engine shows."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fronts import MEMORY_BYTES, Passage, behind_a_front
from tests.models import Opinion, chance, load_members, number, write_members
from tests.servers import write_ensemble
from twinfer_server.device import CpuDevice
from twinfer_server.engine import LocalEngine
from twinfer_server.ensemble import Ensemble, load_ensemble, warm_up
from twinfer_server.errors import Draining, MemberOff, MissingInput, Overloaded, TwinferError
from twinfer_server.inputs import InputLimits
from twinfer_server.rows import Answer, Policy, Priority, Request, State
from twinfer_server.settings import ServerSettings
from twinfer_server.trust import Trust

LARGE = 2_500_000
"""Numbers, of 4 bytes each."""

LARGE_TOML = f"""
    name = "large"
    version = 1
    task = "tensor"
    [members.left]
    model = "python:models.py:Mirror"
    [members.left.output]
    kind = "tensor"
    [members.left.input.x]
    kind = "tensor"
    dtype = "float32"
    shape = [{LARGE}]
    [members.right]
    model = "python:models.py:Mirror"
    [members.right.output]
    kind = "tensor"
    [members.right.input.x]
    kind = "tensor"
    dtype = "float32"
    shape = [{LARGE}]
    [fusion]
    method = "weighted_mean"
    [batching]
    max_rows = 1
"""
MODELS = """
    import torch


    class Mirror(torch.nn.Module):
        def forward(self, x):
            return x.flip(1)
"""


class Books:
    """Keeps everything that an engine tells."""

    def __init__(self) -> None:
        self.answers: list[tuple[Answer, float]] = []
        self.failures: list[TwinferError] = []

    def on_answer(self, answer: Answer, seconds: float) -> None:
        self.answers.append((answer, seconds))

    def on_failure(self, error: TwinferError) -> None:
        self.failures.append(error)

    def on_flight(self, record: object) -> None:
        pass

    def on_switch(self, member: str, switch: object, trips: int) -> None:
        pass


@pytest.fixture
def opinion() -> Opinion:
    return Opinion()


@pytest.fixture
def ensemble(opinion: Opinion, tmp_path: Path) -> Ensemble:
    return load_members(write_members(tmp_path, {"left": opinion}), seconds=1000.0)


@asynccontextmanager
async def started(ensemble: Ensemble, **settings: Any) -> AsyncIterator[tuple[LocalEngine, ServerSettings]]:
    """An engine, and the settings for those before it."""
    read = ServerSettings(**({"default_timeout_seconds": 1e6, "stall_seconds": 1e6} | settings))
    engine = LocalEngine(ensemble, read)
    engine.start()
    try:
        yield engine, read
    finally:
        engine.close()


@asynccontextmanager
async def passage(ensemble: Ensemble, memory_bytes: int = MEMORY_BYTES, **settings: Any) -> AsyncIterator[Passage]:
    async with started(ensemble, **settings) as (engine, read):
        async with behind_a_front(engine, read, memory_bytes) as found:
            yield found
        await engine.drain()


@asynccontextmanager
async def two_passages(ensemble: Ensemble, **settings: Any) -> AsyncIterator[tuple[LocalEngine, Passage, Passage]]:
    """Two fronts, and the engine behind both."""
    async with (
        started(ensemble, **settings) as (engine, read),
        behind_a_front(engine, read) as one,
        behind_a_front(engine, read) as other,
    ):
        yield engine, one, other


def ask(there: Passage, x: float = 1.0, **options: Any) -> "asyncio.Task[Answer]":
    request = Request({"left": number(x)}, time.monotonic(), **options)
    return asyncio.create_task(there.front.infer(request, 100))


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def life() -> None:
        await scenario()

    asyncio.run(life())


def test_the_cells_of_an_answered_row_come_back(ensemble: Ensemble) -> None:
    async def scenario() -> None:
        async with passage(ensemble) as there:
            for _ in range(20):
                await ask(there)
            await until(lambda: there.front.taken_cells == 0)
            assert there.desk.lent_rows == 0

    run(scenario)


def test_the_cells_of_a_cancelled_row_come_back_when_its_flight_has_landed_and_not_before(
    ensemble: Ensemble, opinion: Opinion
) -> None:
    async def scenario() -> None:
        async with passage(ensemble) as there:
            with opinion.held():
                flying = ask(there, 1)
                await asyncio.to_thread(opinion.entered.wait)
                waiting = ask(there, 2)
                await until(lambda: there.desk.rows_in_hand == 2)
                waiting.cancel()
                flying.cancel()
                await asyncio.wait({flying, waiting})
                await until(lambda: there.desk.rows_in_hand == 0)
                await until(lambda: there.desk.lent_rows == 1)  # the one that waited is gone
                assert there.front.taken_cells >= 1
            assert (await ask(there, 3)).fused[0] == pytest.approx(chance(3), abs=1e-6)
            await until(lambda: there.front.taken_cells == 0)
            assert opinion.batches == [[1], [3]], "the flight flew on, and nobody else"

    run(scenario)


def test_a_front_that_ends_gives_up_its_rows_and_nobody_elses(ensemble: Ensemble, opinion: Opinion) -> None:
    async def scenario() -> None:
        async with passage(ensemble) as there:
            with opinion.held():
                flying = ask(there, 1)
                await asyncio.to_thread(opinion.entered.wait)
                waiting = ask(there, 2)
                await until(lambda: there.desk.rows_in_hand == 2)
                there.links[0].close()
                await until(lambda: there.desk.rows_in_hand == 0)
                for row in (flying, waiting):
                    with pytest.raises(Draining, match="the process that owns the device has ended"):
                        await row
            with pytest.raises(Draining):
                await ask(there)
        assert opinion.batches == [[1]]

    run(scenario)


def test_fields_of_a_row_count_on_the_other_side(ensemble: Ensemble, opinion: Opinion) -> None:
    """Priority lets a row pass another one, and a time that is up ends it."""

    async def scenario() -> None:
        async with passage(ensemble) as there:
            with opinion.held():
                flying = ask(there, 1)
                await asyncio.to_thread(opinion.entered.wait)
                rows = [ask(there, x, priority=Priority.LOW) for x in (2, 3, 4, 5)]
                await until(lambda: there.desk.rows_in_hand == 5)
                rows.append(ask(there, 6, priority=Priority.HIGH))
                await until(lambda: there.desk.rows_in_hand == 6)
                late = ask(there, 7, timeout_seconds=0.05)
                with pytest.raises(TwinferError) as failure:
                    await late
                assert failure.value.code.name == "DEADLINE_EXCEEDED"
            await asyncio.gather(flying, *rows)
            assert next(batch for batch in opinion.batches if 6 in batch)[0] == 6

    run(scenario)


def test_the_limits_hold_for_all_fronts_together(ensemble: Ensemble, opinion: Opinion) -> None:
    async def scenario() -> None:
        async with two_passages(ensemble, max_waiting_rows=3) as (engine, one, other):
            with opinion.held():
                rows = [ask(one), ask(one), ask(other)]
                await until(lambda: engine.rows_in_hand == 3)
                with pytest.raises(Overloaded, match="3 rows are in hand") as refused:
                    await ask(other)
                assert refused.value.retry_after_seconds > 0
            await asyncio.gather(*rows)

    run(scenario)


def test_the_cells_of_refused_rows_come_back_without_the_garbage_collector(ensemble: Ensemble, opinion: Opinion) -> None:
    async def scenario() -> None:
        async with two_passages(ensemble, max_waiting_rows=1) as (engine, one, other):
            with opinion.held():
                row = ask(one)
                await until(lambda: engine.rows_in_hand == 1)
                gc.disable()
                try:
                    for _ in range(3):
                        with pytest.raises(Overloaded):
                            await ask(other)
                    await until(lambda: not other.front.taken_cells)
                finally:
                    gc.enable()
            await row

    run(scenario)


def test_what_a_member_that_is_off_is_needed_for_is_refused_before_it_is_decoded(ensemble: Ensemble) -> None:
    async def scenario() -> None:
        async with started(ensemble) as (engine, read):
            changes: list[str] = []
            engine.operations.on_change = lambda: changes.append("changed")
            await engine.operations.set_member("left", is_on=False)
            assert changes, "else the fronts would not be told"
            async with behind_a_front(engine, read) as there:
                request = Request({"left": number(1).repeat(2)}, time.monotonic())  # of no shape that it takes
                with pytest.raises(MemberOff, match="an operator has switched it off"):
                    await there.front.infer(request, 1)

    run(scenario)


def test_the_books_are_kept_where_the_device_is(ensemble: Ensemble) -> None:
    async def scenario() -> None:
        books = Books()
        async with started(ensemble) as (engine, read):
            engine.listen(books)
            async with behind_a_front(engine, read) as there:
                request = Request({"left": number(1)}, time.monotonic())
                answer = await there.front.infer(request, 1)
                there.front.note_reply(request, answer, time.monotonic())
                there.front.note_failure(MissingInput("inputs: none"))
                await until(lambda: bool(books.failures))
            ((noted, seconds),) = books.answers
            assert [member.state for member in noted.members] == [State.OK]
            assert (noted.timings.device_seconds, noted.timings.queue_seconds) == (
                answer.timings.device_seconds,
                answer.timings.queue_seconds,
            )
            assert 0 < seconds < 60
            assert type(books.failures[0]) is MissingInput

    run(scenario)


def test_a_row_of_ten_megabytes_goes_through_and_one_that_has_no_room_is_refused(tmp_path: Path) -> None:
    folder = write_ensemble(tmp_path / "large", LARGE_TOML, {"models.py": MODELS})
    ensemble = load_ensemble(folder, CpuDevice(lanes=2), Trust(runs_any_code=True), InputLimits())
    warm_up(ensemble, None, lambda done, total: None)
    x = np.arange(LARGE, dtype=np.float32)

    async def scenario() -> None:
        async with passage(ensemble) as there:
            request = Request({"x": x}, time.monotonic(), policy=Policy.REQUIRE_ALL)
            answer = await there.front.infer(request, x.nbytes)
            assert np.array_equal(answer.fused, x[::-1])
        async with passage(ensemble, memory_bytes=2**20) as narrow:
            with pytest.raises(Overloaded, match="has no room"):
                await narrow.front.infer(request, x.nbytes)

    run(scenario)

"""Rows, answers and errors come through shared memory as they are, whatever is in them."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy

from twinfer_server.errors import Overloaded, Stage, TwinferError
from twinfer_server.fronts.cells import Bytes
from twinfer_server.fronts.parcel import DTYPES, Parcel
from twinfer_server.fronts.wire import ERROR_KINDS, pack_outcome, pack_row, unpack_outcome, unpack_row
from twinfer_server.rows import Answer, Caller, Influence, MemberAnswer, Policy, Priority, Request, Row, State, Timings

LEAVES = {name: kind for name, kind in ERROR_KINDS.items() if not kind.__subclasses__() or "reason" in vars(kind)}

text = some.text(max_size=20)
seconds = some.floats(allow_nan=False)
floats = some_numpy.arrays(np.float32, some_numpy.array_shapes(max_dims=3, max_side=4))
samples = some.lists(
    some.sampled_from(DTYPES).flatmap(lambda dtype: some_numpy.arrays(dtype, some_numpy.array_shapes(min_side=0, max_side=4))),
    min_size=1,
    max_size=3,
).map(tuple)
errors = some.builds(
    lambda name, words, member, stage: (
        Overloaded(words, retry_after_seconds=0.25)
        if issubclass(LEAVES[name], Overloaded)
        else LEAVES[name](words, member=member, stage=stage)
    ),
    some.sampled_from(sorted(LEAVES)),
    some.text(max_size=1500),
    text,
    some.sampled_from(Stage),
)
requests = some.builds(
    Request,
    inputs=some.just({}),
    arrived_at=seconds,
    priority=some.sampled_from(Priority),
    wants_member_predictions=some.booleans(),
    wants_explanation=some.booleans(),
    caller=some.builds(Caller, text, text, text),
)
rows = some.builds(
    Row,
    request=requests,
    policy=some.sampled_from(Policy),
    weights=some.none() | some_numpy.arrays(np.float64, some.integers(1, 4)),
    reply_by=seconds,
    samples=some.dictionaries(some.integers(0, 60_000), samples, min_size=1, max_size=3),
    ready_at=seconds,
    decode_seconds=seconds,
)
member_answers = some.builds(
    MemberAnswer,
    state=some.sampled_from(State),
    weight=seconds,
    device_seconds=some.none() | seconds,
    output=some.none() | floats,
    error=some.none() | errors,
    alone_seconds=some.none() | seconds,
    was_captured=some.booleans(),
    influence=some.none() | some.builds(Influence, seconds, floats),
)
answers = some.builds(
    Answer,
    fused=floats,
    members=some.lists(member_answers, max_size=4).map(tuple),
    disagreement=some.none() | seconds,
    timings=some.builds(Timings, seconds, seconds, seconds, some.integers(0, 1000), some.none() | seconds, text, seconds),
    fusion_version=some.integers(1, 10_000),
)


def facts(value: Any) -> Any:
    """Everything in a message, in a form that `==` compares: arrays with dtype and shape, errors with their class."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, TwinferError):
        return type(value), vars(value)
    if dataclasses.is_dataclass(value):
        return type(value), [facts(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return {key: facts(entry) for key, entry in value.items()}
    return [facts(entry) for entry in value] if isinstance(value, tuple) else value


def written(parcel: Parcel) -> Bytes:
    room = np.full(parcel.size_bytes, 0xAA, dtype=np.uint8)
    parcel.write(room)
    return room


@given(rows)
def test_a_row_comes_through(row: Row) -> None:
    assert facts(unpack_row(written(pack_row(row)))) == facts(row)


@given(answers)
def test_an_answer_comes_through(answer: Answer) -> None:
    assert facts(unpack_outcome(written(pack_outcome(answer)))) == facts(answer)


@given(errors)
def test_an_error_comes_through_as_itself(error: TwinferError) -> None:
    assert facts(unpack_outcome(written(pack_outcome(error)))) == facts(error)


def test_every_error_that_ends_a_call_is_known() -> None:
    """A class that were forgotten would be no answer at all."""
    assert {"Overloaded", "MemberFailed", "Draining", "InvalidInput"} <= LEAVES.keys()


def test_an_answer_does_not_hold_on_to_its_room() -> None:
    answer = Answer(np.ones(3, np.float32), (), None, Timings(0.0, 0.0, 0.0, 1))
    room = written(pack_outcome(answer))
    found = unpack_outcome(room)
    room[:] = 0
    assert isinstance(found, Answer)
    assert found.fused.tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [1, 10 * 2**20], ids=["one number", "forty megabytes"])
def test_samples_of_any_size_are_views_of_the_room(size: int) -> None:
    row = Row(Request({}, 0.0), Policy.REQUIRE_ALL, None, 1.0, samples={0: (np.arange(size, dtype=np.float32)[np.newaxis],)})
    room = written(pack_row(row))
    (found,) = unpack_row(room).samples[0]
    assert np.shares_memory(found, room)
    assert np.array_equal(found[0], np.arange(size, dtype=np.float32))

"""Heads are read as they were written, in every order; the calls that they begin get what gRPC says: timeouts, statuses, refusals."""

import ast
import base64
from collections.abc import Iterator

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.peers import DATA, END_HEADERS, END_STREAM, HEADERS, BarePeer, message, raw, request_fields
from tests.wire import ABORT, ECHO, LOOPS, TELL, WAIT, RunningWire, wired
from twinfer_server.http2.frames import ConnectionFault
from twinfer_server.http2.heads import Head, HeadReader

Told = tuple[tuple[tuple[str, str | bytes], ...], float | None]

# Few names and values, so that blocks come again and could mean something else by then; some push the others out of the table.
names = some.sampled_from(["one", "two-bin"])
values = some.sampled_from(["", "YQ", "x" * 1500])
fields = some.lists(some.tuples(names, values), max_size=1)
table_sizes = some.sampled_from([None] * 9 + [0, 400, 4096])
steps = some.lists(some.tuples(some.booleans(), table_sizes, fields), min_size=20, max_size=40)


@pytest.fixture(scope="module", params=LOOPS)
def wire(request: pytest.FixtureRequest) -> Iterator[RunningWire]:
    with wired(request.param) as wire:
        yield wire


@pytest.fixture
def peer(wire: RunningWire) -> Iterator[BarePeer]:
    with BarePeer(wire.address) as peer:
        yield peer


# --- reading ----------------------------------------------------------------------------------------------------------


@given(steps)
def test_heads_mean_the_same_whether_or_not_they_are_remembered(steps: list[tuple[bool, int | None, list[tuple[str, str]]]]) -> None:
    encoder, reader = hpack.Encoder(), HeadReader()
    for is_head, table_size, more in steps:
        if table_size is not None:
            encoder.header_table_size = table_size
        if is_head:
            head = reader.read(encoder.encode([*request_fields(ECHO), *more]))
            assert head.path == ECHO
            assert list(head.metadata) == [(name, unpack(value) if name.endswith("-bin") else value) for name, value in more]
        else:
            reader.skip(encoder.encode(more))


@given(some.lists(some.binary(max_size=200), max_size=5))
def test_any_bytes_are_heads_or_break_a_rule(blocks: list[bytes]) -> None:
    reader = HeadReader()
    for block in blocks:
        try:
            assert isinstance(reader.read(block), Head)
        except ConnectionFault:
            break


def test_a_head_that_the_table_no_longer_explains_is_not_remembered() -> None:
    reader, encoder = HeadReader(), hpack.Encoder()
    reader.skip(encoder.encode([("first", "1")]))
    block = encoder.encode([*map(hpack_never, request_fields(ECHO)), ("first", "1")])
    assert ("first", "1") in reader.read(block).metadata
    reader.skip(encoder.encode([("second", "2")]))
    assert ("second", "2") in reader.read(block).metadata


def test_a_table_that_has_shrunk_is_not_remembered() -> None:
    reader, encoder = HeadReader(), hpack.Encoder()
    reader.skip(encoder.encode([("old", "x" * 1000), ("new", "y")]))
    block = encoder.encode([*map(hpack_never, request_fields(ECHO)), ("old", "x" * 1000)])
    assert ("old", "x" * 1000) in reader.read(block).metadata
    encoder.header_table_size = 100
    reader.read(encoder.encode(map(hpack_never, request_fields(ECHO))))
    with pytest.raises(ConnectionFault, match="table index"):
        reader.read(block)


def unpack(value: str) -> bytes:
    """Read base64 without its padding."""
    return base64.b64decode(value + "=" * (-len(value) % 4))


def hpack_never(field: tuple[str, str]) -> hpack.NeverIndexedHeaderTuple:
    """Write a field so that it needs nothing of the table."""
    return hpack.NeverIndexedHeaderTuple(*field)

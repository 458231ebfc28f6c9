"""Heads are read as they were written, in every order; their calls get what gRPC says: timeouts, statuses, refusals."""

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


# --- reading ----------------------------------------------------------------------------------------------------------


@given(steps)
def test_heads_mean_the_same_whether_or_not_they_are_remembered(
    steps: list[tuple[bool, int | None, list[tuple[str, str]]]],
) -> None:
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


# --- what becomes of calls --------------------------------------------------------------------------------------------


def ask(peer: BarePeer, path: str, more: list[tuple[str, str]], body: bytes = message(b"")) -> dict[str, str]:
    """Make the connection's only call; gives the last fields of its answer."""
    peer.send(peer.head(1, path, more), raw(DATA, END_STREAM, 1, body))
    return peer.answer(1).heads[-1]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("2H", 7200), ("90M", 5400), ("99999999S", 99999999), ("50000m", 50), ("90000000u", 90), ("99999999H", 4e11)],
)
def test_timeouts_come_in_every_unit(peer: BarePeer, written: str, seconds: float) -> None:
    ask(peer, TELL, [("grpc-timeout", written)])
    told: Told = ast.literal_eval(peer.answer(1).messages[0].decode())
    assert told[1] is not None
    assert seconds * 0.8 < told[1] <= seconds


@pytest.mark.parametrize("written", ["", "1", "S", "1s", "123456789S", "-1S", "1.5S", " 1S", "1S\n", "١S"])
def test_what_is_no_timeout_is_refused(peer: BarePeer, written: str) -> None:
    trailers = ask(peer, ECHO, [("grpc-timeout", written)])
    assert trailers["grpc-status"] == "13"
    assert trailers["grpc-message"].startswith("grpc-timeout: found")


@pytest.mark.parametrize("written", ["0S", "1n", "10m"])
def test_a_deadline_that_is_over_ends_the_call(wire: RunningWire, peer: BarePeer, written: str) -> None:
    assert ask(peer, WAIT, [("grpc-timeout", written)])["grpc-status"] == "4"
    with BarePeer(wire.address) as slow:
        slow.send(slow.head(1, ECHO, [("grpc-timeout", written)]))
        assert slow.answer(1).status[0] == 4


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"])
def test_contents_of_grpc_are_taken(peer: BarePeer, kind: str) -> None:
    fields = [(name, kind if name == "content-type" else value) for name, value in request_fields(ECHO)]
    peer.send(raw(HEADERS, END_HEADERS, 1, peer.block(fields)), raw(DATA, END_STREAM, 1, message(b"x")))
    assert peer.answer(1).messages == [b"x"]


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        (":method", "GET", {":status": "405", "allow": "POST"}),
        ("content-type", "application/json", {":status": "415"}),
        ("content-type", "application/grpc-web+proto", {":status": "415"}),
        ("content-type", "", {":status": "415"}),
    ],
)
def test_what_is_no_call_of_grpc_gets_an_answer_of_http(peer: BarePeer, name: str, value: str, answer: dict[str, str]) -> None:
    fields = [(each, value if each == name else before) for each, before in request_fields(ECHO)]
    peer.send(raw(HEADERS, END_HEADERS | END_STREAM, 1, peer.block(fields)))
    assert peer.answer(1).heads == [answer]


def test_metadata_over_16_kilobytes_refuses_its_call_alone(peer: BarePeer) -> None:
    peer.send(peer.head(1, WAIT), peer.call(3, ECHO, b"", [("long", "x" * 30_000)]), peer.call(5, ECHO, b"neighbour"))
    assert peer.answer(3).status == (8, "metadata: found more than 16384 bytes; allowed: at most so many")
    assert peer.answer(5).messages == [b"neighbour"]
    assert 1 not in peer.answers


def test_binary_values_may_be_joined_and_padded(peer: BarePeer) -> None:
    ask(peer, TELL, [("some-bin", "YQ,YWI=,YWJj"), ("one-bin", "YQ==")])
    told: Told = ast.literal_eval(peer.answer(1).messages[0].decode())
    assert told[0] == (("some-bin", b"a"), ("some-bin", b"ab"), ("some-bin", b"abc"), ("one-bin", b"a"))


def test_what_is_not_base64_is_refused(peer: BarePeer) -> None:
    trailers = ask(peer, ECHO, [("some-bin", "!!")])
    assert (trailers["grpc-status"], trailers["grpc-message"]) == ("13", "some-bin: found what is not base64")


def test_statuses_are_written_as_grpc_has_it(peer: BarePeer) -> None:
    trailers = ask(peer, ABORT, [], message(b"0"))
    assert trailers == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": str(grpc.StatusCode.DATA_LOSS.value[0]),
        "grpc-message": "an error: %C3%BC 100%25 %E6%BC%A2",
        "grpc-accept-encoding": "identity,deflate,gzip",
        "reason": "so",
        "empty": "",
        "detail-bin": "AP8",
        "none-bin": "",
    }


@pytest.mark.parametrize("size", [0, 100])
def test_a_client_without_a_table_is_told_that_there_is_none(wire: RunningWire, size: int) -> None:
    with BarePeer(wire.address, {1: size}) as peer:
        peer.decoder.max_allowed_table_size = size
        for stream in (1, 3):
            peer.send(peer.call(stream, ECHO, b"x"))
            assert peer.answer(stream).messages == [b"x"]
            assert [head.get("grpc-status") for head in peer.answer(stream).heads] == [None, "0"]

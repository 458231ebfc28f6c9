"""Messages are put together from whatever pieces they come in; those that are none, or too large, end their call as gRPC says."""

import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.peers import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, BarePeer, cut, message, raw
from tests.wire import ECHO, JOIN, LIMITS, MIRROR, WAIT, RunningWire, wired
from twinfer_server.http2 import calls
from twinfer_server.http2.messages import BadMessage, Inbox, decompress

GZIP, DEFLATE = 31, 15
LIMIT = 1000


@pytest.fixture(scope="module")
def wire() -> Iterator[RunningWire]:
    with wired() as wire:
        yield wire


def pack(data: bytes, bits: int) -> bytes:
    """Compress as gzip or as deflate."""
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


# --- reading ----------------------------------------------------------------------------------------------------------


@given(some.lists(some.tuples(some.binary(max_size=40), some.booleans()), max_size=6), some.lists(some.integers(0), max_size=12))
def test_messages_are_the_same_however_they_are_cut(sent: list[tuple[bytes, bool]], places: list[int]) -> None:
    inbox = Inbox(LIMIT)
    for piece in cut(b"".join(message(data, flag) for data, flag in sent), places):
        inbox.add(b"before" + piece + b"behind", 6, 6 + len(piece))
    assert inbox.is_between_messages
    assert inbox.missing_bytes == 0
    assert [(bytes(data), flag) for data, flag in inbox.complete] == sent


@given(some.lists(some.binary(max_size=30) | some.just(bytes(7))))
def test_any_bytes_are_messages_or_a_bad_one(pieces: list[bytes]) -> None:
    inbox = Inbox(LIMIT)
    try:
        for piece in pieces:
            inbox.add(piece, 0, len(piece))
    except BadMessage:
        return
    whole = sum(5 + len(data) for data, _ in inbox.complete)
    assert (whole == sum(map(len, pieces))) == inbox.is_between_messages


@given(
    some.binary(max_size=50) | some.binary(max_size=50).map(lambda data: pack(data, GZIP)[:-1]),
    some.sampled_from(["gzip", "deflate"]),
)
def test_any_bytes_unfold_or_are_a_bad_message(data: bytes, encoding: str) -> None:
    try:
        message = decompress(data, encoding, LIMIT)
    except BadMessage:
        return
    assert len(message) <= LIMIT


@given(some.binary(max_size=LIMIT), some.sampled_from([("gzip", GZIP), ("deflate", DEFLATE)]))
def test_what_was_compressed_unfolds(data: bytes, encoding: tuple[str, int]) -> None:
    assert decompress(pack(data, encoding[1]), encoding[0], LIMIT) == data


# --- what becomes of calls --------------------------------------------------------------------------------------------

BODIES: dict[str, tuple[str, bytes, str, int]] = {
    "no message where there should be one": (ECHO, b"", "gzip", 12),
    "two messages where there should be one": (ECHO, message(b"a") + message(b"b"), "gzip", 12),
    "a message that breaks off": (ECHO, message(b"abc")[:-1], "gzip", 13),
    "a message that breaks off in its prefix": (ECHO, message(b"abc")[:3], "gzip", 13),
    "a second message that breaks off": (JOIN, message(b"abc") * 2 + b"\0", "gzip", 13),
    "a message over the limit": (ECHO, message(bytes(LIMITS.max_message_bytes + 1))[:100], "gzip", 8),
    "a flag that says nothing": (ECHO, message(b"abc", 2), "gzip", 13),
    "an unknown encoding": (ECHO, message(b"abc", 1), "snappy", 12),
    "an unknown encoding on a stream": (MIRROR, message(b"abc", 1), "snappy", 12),
    "a compressed message of a call that announces none": (ECHO, message(b"abc", 1), "identity", 13),
    "what is no gzip": (ECHO, message(b"abc", 1), "gzip", 13),
    "gzip that breaks off": (ECHO, message(pack(b"abc", GZIP)[:-3], 1), "gzip", 13),
    "a bomb of gzip": (ECHO, message(pack(bytes(LIMITS.max_message_bytes + 1), GZIP), 1), "gzip", 8),
    "a bomb of deflate on a stream": (JOIN, message(pack(bytes(LIMITS.max_message_bytes + 1), DEFLATE), 1), "deflate", 8),
}


@pytest.mark.parametrize(("path", "body", "encoding", "status"), BODIES.values(), ids=list(BODIES))
def test_a_bad_body_ends_its_call_alone(peer: BarePeer, path: str, body: bytes, encoding: str, status: int) -> None:
    pieces = [body[at : at + 2**14] for at in range(0, len(body), 2**14)]
    peer.send(peer.head(1, WAIT), peer.head(3, path, [("grpc-encoding", encoding)]), *(raw(DATA, 0, 3, piece) for piece in pieces))
    peer.send(raw(DATA, END_STREAM, 3))
    assert peer.answer(3).status[0] == status
    assert peer.answer(3).heads[0]["grpc-accept-encoding"] == "identity,deflate,gzip"
    peer.send(peer.call(5, ECHO, b"still here"))
    assert peer.answer(5).messages == [b"still here"]


@pytest.mark.parametrize(("encoding", "bits"), [("gzip", GZIP), ("deflate", DEFLATE)])
def test_only_marked_messages_of_a_call_are_compressed(peer: BarePeer, encoding: str, bits: int) -> None:
    body = message(b"plain ") + message(pack(b"packed ", bits), 1) + message(b"") + message(pack(b"", bits), 1) + message(b"plain")
    peer.send(peer.head(1, JOIN, [("grpc-encoding", encoding)]), raw(DATA, END_STREAM, 1, body))
    assert peer.answer(1).messages == [b"plain packed plain"]


def test_a_call_that_is_over_is_reset_only_where_its_client_goes_on(monkeypatch: pytest.MonkeyPatch, peer: BarePeer) -> None:
    monkeypatch.setattr(calls, "LINGER_SECONDS", 0.01)
    ends: dict[int, Callable[[], bytes]] = {
        1: lambda: raw(DATA, END_STREAM, 1),
        3: lambda: raw(HEADERS, END_HEADERS | END_STREAM, 3, peer.block([("and", "that is all")])),
        5: lambda: raw(RST_STREAM, 0, 5, bytes(4)),
        7: lambda: b"",
    }
    for stream, end in ends.items():
        peer.send(peer.head(stream, "/wire/None") + end())
        assert peer.answer(stream).status[0] == 12
    peer.wait(lambda: peer.answers[7].reset is not None)
    assert [peer.answers[stream].reset for stream in ends] == [None, None, None, 0]


def test_an_answer_says_that_nothing_more_need_be_sent(peer: BarePeer) -> None:
    peer.send(peer.head(1, ECHO), raw(DATA, 0, 1, message(bytes(LIMITS.max_message_bytes + 1))[:100]))
    answer = peer.answer(1)
    peer.wait(lambda: answer.reset is not None)
    assert (answer.status[0], answer.has_ended, answer.reset) == (8, True, 0)

"""Clients that break the rules of RFC 9113 are told which, and only their connection ends."""

from collections.abc import Callable, Iterator

import pytest

from tests.peers import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    BarePeer,
    raw,
    request_fields,
)
from tests.wire import ECHO, JOIN, WAIT, RunningWire, wired

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, COMPRESSION_ERROR, CALM = 1, 3, 5, 6, 9, 11
Offence = Callable[[BarePeer], bytes]

WORD = b"\x00\x00\x00\x01"
MOST = b"\x7f\xff\xff\xff"


def setting(key: int, value: int) -> bytes:
    """Write a frame with one setting."""
    return raw(SETTINGS, 0, 0, key.to_bytes(2) + value.to_bytes(4))


def waiting(peer: BarePeer) -> bytes:
    """Write a call that is not answered, on stream 1."""
    return peer.call(1, WAIT, b"")


OFFENCES: dict[str, tuple[int, Offence]] = {
    "4.2 a frame longer than was allowed": (FRAME_SIZE_ERROR, lambda peer: raw(DATA, 0, 1, bytes(2**16 + 1))[:9]),
    "4.2 a head too short for its priority": (FRAME_SIZE_ERROR, lambda peer: raw(HEADERS, END_HEADERS | HAS_PRIORITY, 1, WORD)),
    "4.2 a padded frame without the length of its padding": (FRAME_SIZE_ERROR, lambda peer: waiting(peer) + raw(DATA, PADDED, 1)),
    "4.3 a head that is no HPACK": (COMPRESSION_ERROR, lambda peer: raw(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff")),
    "4.3 a head that breaks off": (COMPRESSION_ERROR, lambda peer: raw(HEADERS, END_HEADERS, 1, b"\x40\x0acustom")),
    "4.3 a frame of another kind inside a head": (
        PROTOCOL_ERROR,
        lambda peer: peer.head(1, ECHO, flags=0) + raw(PING, 0, 0, bytes(8)),
    ),
    "4.3 a frame of an unknown kind inside a head": (PROTOCOL_ERROR, lambda peer: peer.head(1, ECHO, flags=0) + raw(77, 0, 1)),
    "4.3 data inside a head": (PROTOCOL_ERROR, lambda peer: peer.head(1, ECHO, flags=0) + raw(DATA, 0, 1)),
    "5.1 data on a stream that has not begun": (PROTOCOL_ERROR, lambda peer: raw(DATA, 0, 1, b"x")),
    "5.1 a reset of a stream that has not begun": (PROTOCOL_ERROR, lambda peer: raw(RST_STREAM, 0, 1, WORD)),
    "5.1 a window of a stream that has not begun": (PROTOCOL_ERROR, lambda peer: raw(WINDOW_UPDATE, 0, 1, WORD)),
    "5.1 data on a stream that only a server may begin": (
        PROTOCOL_ERROR,
        lambda peer: peer.call(5, WAIT, b"") + raw(DATA, 0, 2, b"x"),
    ),
    "5.1 data behind the end of a stream": (STREAM_CLOSED, lambda peer: waiting(peer) + raw(DATA, END_STREAM, 1)),
    "5.1 trailers behind the end of a stream": (
        STREAM_CLOSED,
        lambda peer: waiting(peer) + raw(HEADERS, END_HEADERS | END_STREAM, 1, peer.block([("late", "yes")])),
    ),
    "5.1.1 a stream with an even number": (PROTOCOL_ERROR, lambda peer: peer.call(2, ECHO, b"")),
    "5.1.1 a stream with an even number below one that has begun": (
        PROTOCOL_ERROR,
        lambda peer: peer.call(5, WAIT, b"") + raw(HEADERS, END_HEADERS | END_STREAM, 2, peer.block(request_fields(ECHO))),
    ),
    "5.1.1 a stream with a lower number than one before": (
        PROTOCOL_ERROR,
        lambda peer: peer.call(5, WAIT, b"") + peer.call(3, ECHO, b""),
    ),
    "6.1 data on stream 0": (PROTOCOL_ERROR, lambda peer: raw(DATA, 0, 0, b"x")),
    "6.1 data with more padding than there is": (PROTOCOL_ERROR, lambda peer: waiting(peer) + raw(DATA, PADDED, 1, b"\x05four")),
    "6.2 a head on stream 0": (PROTOCOL_ERROR, lambda peer: peer.head(0, ECHO)),
    "6.2 a head with more padding than there is": (PROTOCOL_ERROR, lambda peer: raw(HEADERS, END_HEADERS | PADDED, 1, b"\x05four")),
    "6.2 a head whose padding reaches into its priority": (
        PROTOCOL_ERROR,
        lambda peer: raw(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, 1, b"\x03" + bytes(6)),
    ),
    "6.3 a priority on stream 0": (PROTOCOL_ERROR, lambda peer: raw(PRIORITY, 0, 0, bytes(5))),
    "6.3 a priority of another length": (FRAME_SIZE_ERROR, lambda peer: raw(PRIORITY, 0, 1, bytes(4))),
    "6.4 a reset of stream 0": (PROTOCOL_ERROR, lambda peer: raw(RST_STREAM, 0, 0, WORD)),
    "6.4 a reset of another length": (FRAME_SIZE_ERROR, lambda peer: waiting(peer) + raw(RST_STREAM, 0, 1, b"")),
    "6.5 settings on a stream": (PROTOCOL_ERROR, lambda peer: raw(SETTINGS, 0, 1)),
    "6.5 settings in an acknowledgement": (FRAME_SIZE_ERROR, lambda peer: raw(SETTINGS, ACK, 0, bytes(6))),
    "6.5 half a setting": (FRAME_SIZE_ERROR, lambda peer: raw(SETTINGS, 0, 0, bytes(3))),
    "6.5.2 push that is neither on nor off": (PROTOCOL_ERROR, lambda peer: setting(2, 2)),
    "6.5.2 a window over 2^31-1": (FLOW_CONTROL_ERROR, lambda peer: setting(4, 2**31)),
    "6.5.2 frames under 2^14": (PROTOCOL_ERROR, lambda peer: setting(5, 2**14 - 1)),
    "6.5.2 frames over 2^24-1": (PROTOCOL_ERROR, lambda peer: setting(5, 2**24)),
    "6.6 a promise": (PROTOCOL_ERROR, lambda peer: waiting(peer) + raw(PUSH_PROMISE, END_HEADERS, 1, bytes(4))),
    "6.7 a ping on a stream": (PROTOCOL_ERROR, lambda peer: raw(PING, 0, 1, bytes(8))),
    "6.7 a ping of another length": (FRAME_SIZE_ERROR, lambda peer: raw(PING, 0, 0, bytes(7))),
    "6.8 a goodbye on a stream": (PROTOCOL_ERROR, lambda peer: raw(GOAWAY, 0, 1, bytes(8))),
    "6.8 a goodbye that is too short": (FRAME_SIZE_ERROR, lambda peer: raw(GOAWAY, 0, 0, bytes(7))),
    "6.9 a window of the connection that grows by nothing": (PROTOCOL_ERROR, lambda peer: raw(WINDOW_UPDATE, 0, 0, bytes(4))),
    "6.9 a window of a stream that grows by nothing": (
        PROTOCOL_ERROR,
        lambda peer: waiting(peer) + raw(WINDOW_UPDATE, 0, 1, bytes(4)),
    ),
    "6.9 a window of another length": (FRAME_SIZE_ERROR, lambda peer: raw(WINDOW_UPDATE, 0, 0, bytes(3))),
    "6.9.1 a window of the connection over 2^31-1": (FLOW_CONTROL_ERROR, lambda peer: raw(WINDOW_UPDATE, 0, 0, MOST)),
    "6.9.1 a window of a stream over 2^31-1": (FLOW_CONTROL_ERROR, lambda peer: waiting(peer) + raw(WINDOW_UPDATE, 0, 1, MOST)),
    "6.9.2 settings that take a window over 2^31-1": (
        FLOW_CONTROL_ERROR,
        lambda peer: waiting(peer) + raw(WINDOW_UPDATE, 0, 1, WORD) + setting(4, 2**31 - 1),
    ),
    "6.10 the continuation of nothing": (PROTOCOL_ERROR, lambda peer: raw(CONTINUATION, END_HEADERS, 1)),
    "6.10 the continuation of another stream's head": (
        PROTOCOL_ERROR,
        lambda peer: peer.head(1, ECHO, flags=0) + raw(CONTINUATION, END_HEADERS, 3),
    ),
    "6.10 the continuation of a head that has ended": (
        PROTOCOL_ERROR,
        lambda peer: peer.head(1, ECHO) + raw(CONTINUATION, END_HEADERS, 1),
    ),
    "8.1 a second head that is no trailers": (
        PROTOCOL_ERROR,
        lambda peer: peer.head(1, JOIN) + raw(HEADERS, END_HEADERS, 1, peer.block([("late", "yes")])),
    ),
}

BEGINNINGS = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303"),
    "the preface, but for its last byte": PREFACE[:-1] + b"!" + raw(SETTINGS, 0, 0),
    "a ping before the settings": PREFACE + raw(PING, 0, 0, bytes(8)),
    "an acknowledgement before the settings": PREFACE + raw(SETTINGS, ACK, 0),
}


@pytest.fixture(scope="module")
def wire() -> Iterator[RunningWire]:
    with wired() as wire:
        yield wire


@pytest.fixture(scope="module")
def neighbour(wire: RunningWire) -> Iterator[BarePeer]:
    """Another client, which does nothing wrong."""
    with BarePeer(wire.address) as neighbour:
        yield neighbour


@pytest.mark.parametrize(("code", "offence"), OFFENCES.values(), ids=list(OFFENCES))
def test_a_broken_rule_ends_its_connection_alone_and_is_named(
    peer: BarePeer, neighbour: BarePeer, code: int, offence: Offence
) -> None:
    peer.send(offence(peer), raw(PING, 0, 0, b"no harm?"))
    peer.wait(lambda: peer.frames and peer.frames[-1].type in (GOAWAY, PING))
    last = peer.frames[-1]
    assert (last.type, getattr(last, "error_code", None)) == (GOAWAY, code)
    assert last.additional_data
    assert not peer.pump()
    stream = 2 * len(neighbour.answers) + 1
    neighbour.send(neighbour.call(stream, ECHO, b"still here"))
    assert neighbour.answer(stream).messages == [b"still here"]


@pytest.mark.parametrize("sent", BEGINNINGS.values(), ids=list(BEGINNINGS))
def test_what_does_not_begin_as_http2_does_is_no_client(wire: RunningWire, sent: bytes) -> None:
    with BarePeer(wire.address, begins=False) as peer:
        peer.send(sent, raw(PING, 0, 0, b"no harm?"))
        peer.wait(lambda: peer.frames and peer.frames[-1].type in (GOAWAY, PING))
        assert (peer.frames[-1].type, getattr(peer.frames[-1], "error_code", None)) == (GOAWAY, PROTOCOL_ERROR)


def test_a_head_that_never_ends_is_cut_off(peer: BarePeer) -> None:
    peer.send(peer.head(1, ECHO, flags=0), raw(CONTINUATION, 0, 1, bytes(2**16)))
    last = peer.rest()[-1]
    assert (last.type, last.error_code) == (GOAWAY, CALM)


def test_a_small_head_that_unfolds_to_a_large_one_is_cut_off(peer: BarePeer) -> None:
    large = peer.block([("large", "x" * 4000)])
    peer.send(raw(HEADERS, END_HEADERS, 1, large + b"\xbe" * 1000))
    last = peer.rest()[-1]
    assert (last.type, last.error_code) == (GOAWAY, COMPRESSION_ERROR)


def test_a_broken_rule_cancels_the_calls_of_its_connection() -> None:
    with wired() as wire, BarePeer(wire.address) as peer:
        peer.send(peer.call(1, WAIT, b""))
        assert wire.seen.get() == "wait begins"
        peer.send(raw(DATA, 0, 3))
        assert wire.seen.get() == "wait is cancelled"

"""Clients that mean harm, or are made badly: the server bears so much of it, and its other clients are served all the while."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.calls import PATIENCE_SECONDS
from tests.peers import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    BarePeer,
    H2Peer,
    message,
    raw,
)
from tests.wire import ECHO, LISTEN, LOOPS, MIRROR, WAIT, RunningWire, wired
from twinfer_server.http2.allowance import AT_ONCE

ENHANCE_YOUR_CALM = 11
FAR_TOO_MANY = int(3 * AT_ONCE)
CANCEL = (8).to_bytes(4, "big")


@pytest.fixture(params=LOOPS)
def wire(request: pytest.FixtureRequest) -> Iterator[RunningWire]:
    with wired(request.param) as wire:
        yield wire


def send_as_long_as_taken(peer: BarePeer, pieces: Iterator[bytes]) -> None:
    """Send what a server may stop to take at any time."""
    try:
        for piece in pieces:
            peer.send(piece)
    except ConnectionError:
        pass


def is_cut_off(peer: BarePeer) -> bool:
    """Whether the server closes the connection, and for this reason; a client that goes on sending may miss the last word."""
    peer.socket.settimeout(PATIENCE_SECONDS)
    try:
        peer.rest()
    except ConnectionError:
        pass
    return {frame.error_code for frame in peer.of_kind(GOAWAY)} <= {ENHANCE_YOUR_CALM}


def give_up(peer: BarePeer, stream: int) -> bytes:
    return peer.call(stream, WAIT, b"") + raw(RST_STREAM, 0, stream, CANCEL)


def send_behind_the_end(peer: BarePeer, stream: int) -> bytes:
    return peer.call(stream, WAIT, b"") + raw(DATA, 0, stream, b"more")


def end_twice(peer: BarePeer, stream: int) -> bytes:
    return peer.call(stream, WAIT, b"") + peer.head(stream, WAIT, flags=END_HEADERS | END_STREAM)


def send_what_is_no_message(peer: BarePeer, stream: int) -> bytes:
    return peer.head(stream, LISTEN) + raw(DATA, 0, stream, b"\0\xff\xff\xff\xff")


BREAKS: dict[str, Callable[[BarePeer, int], bytes]] = {
    "a client that gives its calls up": give_up,
    "one that sends behind its end": send_behind_the_end,
    "one that ends twice": end_twice,
    "one that sends what is no message": send_what_is_no_message,
}


@pytest.mark.parametrize("write", BREAKS.values(), ids=BREAKS)
def test_calls_that_end_as_they_begin_are_borne_so_often(wire: RunningWire, write: Callable[[BarePeer, int], bytes]) -> None:
    with BarePeer(wire.address) as peer, grpc.insecure_channel(wire.address) as channel:
        send_as_long_as_taken(peer, (write(peer, stream) for stream in range(1, 2 * FAR_TOO_MANY, 2)))
        assert is_cut_off(peer)
        assert channel.unary_unary(ECHO)(b"neighbour") == b"neighbour"


NOTHING = {
    "settings": raw(SETTINGS, 0, 0),
    "empty data": raw(DATA, 0, 1),
    "padding": raw(DATA, 8, 1, b"\3\0\0\0"),
    "priorities": raw(PRIORITY, 0, 1, bytes(5)),
    "unknown frames": raw(99, 0, 1),
}


@pytest.mark.parametrize("frame", NOTHING.values(), ids=NOTHING)
def test_frames_that_say_nothing_are_borne_so_often(wire: RunningWire, frame: bytes) -> None:
    with BarePeer(wire.address) as peer, grpc.insecure_channel(wire.address) as channel:
        peer.send(peer.head(1, WAIT))
        send_as_long_as_taken(peer, (frame for _ in range(FAR_TOO_MANY)))
        assert is_cut_off(peer)
        assert channel.unary_unary(ECHO)(b"neighbour") == b"neighbour"


def test_a_client_that_is_served_as_often_as_it_gives_up_may_go_on(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        for stream in range(1, 4 * FAR_TOO_MANY, 4):
            peer.send(peer.call(stream, ECHO, b"served"), give_up(peer, stream + 2))
            assert peer.answer(stream).messages == [b"served"]

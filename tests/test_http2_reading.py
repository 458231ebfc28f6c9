"""What RFC 9113 allows clients is taken as they mean it, however rare."""

from collections.abc import Iterator

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
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    BarePeer,
    message,
    raw,
    request_fields,
)
from tests.wire import ECHO, JOIN, LIMITS, SHOUT, RunningWire, wired

WORD = b"\x00\x00\x00\x01"


@pytest.fixture(scope="module")
def wire() -> Iterator[RunningWire]:
    with wired() as wire:
        yield wire


def test_a_connection_begins_with_the_servers_settings_and_acknowledges_the_clients(peer: BarePeer) -> None:
    peer.wait(lambda: len(peer.of_kind(SETTINGS)) == 2)
    first, second = peer.of_kind(SETTINGS)
    assert peer.frames[0] is first
    assert first.settings == {3: LIMITS.max_streams_per_connection, 5: 2**16, 6: 2**14}
    assert "ACK" in second.flags


def test_a_ping_comes_back_and_its_answer_does_not(peer: BarePeer) -> None:
    peer.send(raw(PING, ACK, 0, b"answered"), raw(PING, 0, 0, b"12345678"))
    peer.wait(lambda: peer.of_kind(PING))
    (ping,) = peer.of_kind(PING)
    assert (ping.opaque_data, ping.flags) == (b"12345678", {"ACK"})


def test_padding_is_left_out_of_heads_and_messages(peer: BarePeer) -> None:
    block = peer.block(request_fields(ECHO))
    peer.send(raw(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, 1, b"\x07" + bytes(5) + block + bytes(7)))
    peer.send(raw(DATA, PADDED, 1, b"\x00" + message(b"padded")[:3]), raw(DATA, PADDED, 1, b"\x02\x00\x00"))
    peer.send(raw(DATA, PADDED | END_STREAM, 1, b"\xff" + message(b"padded")[3:] + bytes(255)))
    assert peer.answer(1).messages == [b"padded"]


def test_padding_is_paid_back_before_a_message_begins(peer: BarePeer) -> None:
    peer.send(peer.head(1, ECHO), raw(DATA, PADDED, 1, b"\xff" + bytes(255)) * 255, raw(PING, 0, 0, bytes(8)))
    peer.wait(lambda: peer.of_kind(PING))
    assert sum(frame.window_increment for frame in peer.of_kind(WINDOW_UPDATE) if frame.stream_id == 1) > 0
    peer.send(raw(DATA, PADDED, 1, b"\x80" + bytes(128)), raw(DATA, END_STREAM, 1, message(b"padded")))
    assert peer.answer(1).messages == [b"padded"]


def test_a_head_may_come_in_many_pieces(peer: BarePeer) -> None:
    block = peer.block(request_fields(ECHO))
    peer.send(raw(HEADERS, 0, 1, block[:3]), *(raw(CONTINUATION, 0, 1, block[at : at + 1]) for at in range(3, len(block))))
    peer.send(raw(CONTINUATION, END_HEADERS, 1), raw(DATA, END_STREAM, 1, message(b"pieces")))
    assert peer.answer(1).messages == [b"pieces"]


def test_what_the_server_does_not_know_or_need_is_passed_over(peer: BarePeer) -> None:
    peer.send(
        raw(77, 0xFF, 1, b"unknown"),
        raw(PRIORITY, 0, 9, bytes(5)),
        raw(SETTINGS, 0, 0, bytes([0, 99, 0, 0, 0, 7])),
        raw(GOAWAY, 0, 0, bytes(8)),
    )
    peer.send(raw(PING, 0xFE, 2**31, bytes(8)), peer.call(1, ECHO, b"known"))
    assert peer.answer(1).messages == [b"known"]


def test_trailers_of_a_client_end_its_requests(peer: BarePeer) -> None:
    peer.send(peer.head(1, JOIN), raw(DATA, 0, 1, message(b"one") + message(b"two")))
    peer.send(raw(HEADERS, END_HEADERS | END_STREAM, 1, peer.block([("sum", "2")])))
    assert peer.answer(1).messages == [b"onetwo"]


def test_a_call_may_end_with_its_head(peer: BarePeer) -> None:
    peer.send(peer.head(1, JOIN, flags=END_HEADERS | END_STREAM), peer.head(3, ECHO, flags=END_HEADERS | END_STREAM))
    assert (peer.answer(1).messages, peer.answer(1).status[0]) == ([b""], 0)
    assert peer.answer(3).status == (12, "messages: found 0; allowed: one")


def test_a_status_may_be_longer_than_a_frame(peer: BarePeer) -> None:
    peer.send(peer.call(1, SHOUT, b"40000"))
    assert peer.answer(1).status == (11, "x" * 40_000)
    assert len(peer.of_kind(CONTINUATION)) == 2


def test_frames_of_many_calls_may_be_mixed(peer: BarePeer) -> None:
    streams = range(1, 41, 2)
    texts = {stream: message(f"call {stream}".encode() * stream) for stream in streams}
    peer.send(*(peer.head(stream, JOIN) for stream in streams))
    for at in range(0, max(map(len, texts.values())), 7):
        peer.send(*(raw(DATA, 0, stream, text[at : at + 7]) for stream, text in texts.items()))
    peer.send(*(raw(DATA, END_STREAM, stream) for stream in streams))
    assert [message(peer.answer(stream).messages[0]) for stream in streams] == list(texts.values())


def test_what_still_comes_for_calls_that_are_over_is_dropped(peer: BarePeer) -> None:
    peer.send(peer.call(1, ECHO, b"x"), peer.head(3, "/wire/None"))
    assert peer.answer(1).status == (0, "")
    assert peer.answer(3).status[0] == 12
    for stream in (1, 3):
        peer.send(raw(WINDOW_UPDATE, 0, stream, WORD), raw(DATA, 0, stream, b"late"), raw(RST_STREAM, 0, stream, bytes(4)))
        peer.send(raw(HEADERS, END_HEADERS | END_STREAM, stream, peer.block([("late", f"on {stream}")])))
    peer.send(peer.call(5, ECHO, b"y"))
    assert peer.answer(5).messages == [b"y"]

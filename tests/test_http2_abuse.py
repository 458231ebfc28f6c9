"""Clients that mean harm, or are made badly: the server bears so much of it, and its other clients are served all the while."""

import gc
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import grpc
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calls import PATIENCE_SECONDS
from tests.peers import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    BarePeer,
    message,
    raw,
    request_fields,
)
from tests.wire import ABORT, COUNT, ECHO, LIMITS, LISTEN, LOOPS, MIRROR, WAIT, WRITE, RunningWire, letter, wired
from twinfer_server.http2 import Call, Limits, outlet
from twinfer_server.http2.allowance import AT_ONCE
from twinfer_server.http2.connection import Connection
from twinfer_server.http2.frames import DEFAULT_WINDOW
from twinfer_server.http2.heads import MAX_MEMO_BYTES, HeadReader
from twinfer_server.http2.server import GONE_SECONDS

FAR_TOO_MANY = int(3 * AT_ONCE)
INITIAL_WINDOW_SIZE = 4
CANCEL = (8).to_bytes(4, "big")


@pytest.fixture(params=LOOPS)
def wire(request: pytest.FixtureRequest) -> Iterator[RunningWire]:
    with wired(request.param) as wire:
        yield wire


def serves_others(wire: RunningWire) -> bool:
    """Whether a client that has just come is served."""
    with BarePeer(wire.address) as peer:
        peer.send(peer.call(1, ECHO, b"neighbour"))
        return peer.answer(1).messages == [b"neighbour"]


def send_as_long_as_taken(peer: BarePeer, pieces: Iterator[bytes]) -> None:
    """Send what a server may stop to take at any time."""
    try:
        for piece in pieces:
            peer.send(piece)
    except ConnectionError:
        pass


def is_cut_off(peer: BarePeer) -> bool:
    """Whether the server closes the connection; its last word is lost where a client goes on sending."""
    peer.socket.settimeout(PATIENCE_SECONDS)
    try:
        while peer.socket.recv(2**16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


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
    with BarePeer(wire.address) as peer:
        send_as_long_as_taken(peer, (write(peer, stream) for stream in range(1, 2 * FAR_TOO_MANY, 2)))
        assert is_cut_off(peer)
        assert serves_others(wire)


@pytest.mark.parametrize("path", ["/nowhere.to/BeFound", ABORT], ids=["refused", "failed"])
def test_calls_that_fail_are_answered_without_end(wire: RunningWire, path: str) -> None:
    with BarePeer(wire.address) as peer:
        for stream in range(1, 2 * FAR_TOO_MANY, 2):
            # Clients of `grpc` say after each call that they can take another one, and of what size.
            peer.send(peer.call(stream, path, b"0"), *(raw(WINDOW_UPDATE, 0, each, b"\0\0\0\1") for each in (0, stream)))
            assert peer.answer(stream).status[0]


def test_calls_given_up_at_their_deadline_are_borne_without_end(wire: RunningWire) -> None:
    together = 2 * LIMITS.max_streams_per_connection
    with BarePeer(wire.address) as peer:
        for first in range(1, 2 * FAR_TOO_MANY, together):
            streams = range(first, first + together, 2)
            peer.send(*(peer.head(stream, WAIT, [("grpc-timeout", "10m")]) for stream in streams))
            began = time.monotonic()
            while time.monotonic() - began < 0.01:
                pass
            peer.send(*(raw(RST_STREAM, 0, stream, CANCEL) for stream in streams))
        peer.send(peer.call(first + together, ECHO, b"still here"))
        assert peer.answer(first + together).messages == [b"still here"]


NOTHING = {
    "settings": raw(SETTINGS, 0, 0),
    "empty data": raw(DATA, 0, 1),
    "padding": raw(DATA, 8, 1, b"\3\0\0\0"),
    "priorities": raw(PRIORITY, 0, 1, bytes(5)),
    "unknown frames": raw(99, 0, 1),
    "pings": raw(PING, 0, 0, bytes(8)),
    "windows": raw(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "pieces of a head": raw(CONTINUATION, 0, 3),
}


@pytest.mark.parametrize("frame", NOTHING.values(), ids=NOTHING)
def test_frames_that_say_nothing_are_borne_so_often(wire: RunningWire, frame: bytes) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.head(1, WAIT), raw(HEADERS, 0, 3) if frame[3] == CONTINUATION else b"")
        send_as_long_as_taken(peer, (frame for _ in range(FAR_TOO_MANY)))
        assert is_cut_off(peer)
        assert serves_others(wire)


def test_a_client_that_is_served_as_often_as_it_gives_up_may_go_on(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        for stream in range(1, 4 * FAR_TOO_MANY, 4):
            peer.send(peer.call(stream, ECHO, b"served"), give_up(peer, stream + 2))
            assert peer.answer(stream).messages == [b"served"]


@pytest.mark.parametrize("path", [ABORT, "/wire/Unknown"])
def test_a_client_that_calls_and_calls_and_reads_nothing_is_cut_off(
    wire: RunningWire, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(outlet, "PARTING_SECONDS", 0.0)
    with BarePeer(wire.address) as peer:
        send_as_long_as_taken(peer, (peer.call(stream, path, b"0") for stream in range(1, 1_000_000, 2)))
        assert is_cut_off(peer)
        assert serves_others(wire)


def test_a_client_that_reads_nothing_and_says_that_it_has_done_is_not_waited_for(
    wire: RunningWire, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(outlet, "PARTING_SECONDS", 0.0)
    with BarePeer(wire.address, {INITIAL_WINDOW_SIZE: 2**31 - 1}) as peer:
        peer.send(raw(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big")), peer.call(1, COUNT, b"1000 100000"))
        peer.pump()
        peer.socket.shutdown(socket.SHUT_WR)
        assert wire.seen.get(timeout=PATIENCE_SECONDS) == "count is closed"
        assert is_cut_off(peer)


def test_calls_do_not_wait_for_all_that_a_client_asks_before_they_are_answered(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        is_sent = threading.Event()

        def hold_up() -> None:
            is_sent.wait()

        wire.on_loop(hold_up)  # so that all of it is there when the server looks
        peer.send(peer.call(1, ECHO, b""), *(peer.call(stream, "/wire/None", b"") for stream in range(3, 6000, 2)))
        is_sent.set()
        assert peer.answer(1).messages == [b""]
        assert len(peer.answers) < 1000


def test_a_call_whose_message_never_comes_holds_its_place_so_long_and_a_stream_for_ever() -> None:
    limits = replace(LIMITS, max_concurrent_calls=3, message_seconds=0.05)
    with wired("uvloop", limits=limits) as wire, BarePeer(wire.address) as peer:
        half = message(b"12345678")[:3]  # before it has said that it is large
        peer.send(peer.head(1, MIRROR), peer.head(3, ECHO), raw(DATA, 0, 3, half), peer.head(5, ECHO))
        for stream in (3, 5):
            assert peer.answer(stream).status == (4, "message: found none, or a part, after 0.05 s")
        peer.send(raw(DATA, END_STREAM, 1, message(b"still here")))
        assert peer.answer(1).messages == [b"still here"]


def test_a_large_message_has_more_time_than_a_small_one() -> None:
    limits = replace(LIMITS, max_message_bytes=10**9, message_seconds=0.05)
    with wired("uvloop", limits=limits) as wire, BarePeer(wire.address) as peer:
        peer.send(peer.head(1, ECHO), raw(DATA, 0, 1, message(bytes(30_000_000))[:1000]), peer.head(3, ECHO))
        assert peer.answer(3).status[0] == 4
        assert not peer.answers[1].has_ended


def test_a_reply_that_is_not_taken_holds_its_place_so_long() -> None:
    limits = replace(LIMITS, max_concurrent_calls=1, message_seconds=0.05)
    with wired("uvloop", limits=limits) as wire, BarePeer(wire.address, {INITIAL_WINDOW_SIZE: 0}) as peer:
        peer.send(peer.call(1, ECHO, b"x"))
        assert peer.answer(1).status == (4, "reply: not taken for 0.05 s")
        peer.send(peer.call(3, ECHO, b"y"), raw(WINDOW_UPDATE, 0, 3, (100).to_bytes(4, "big")))
        assert peer.answer(3).messages == [b"y"]


def test_what_is_said_of_a_long_fault_is_short(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(raw(HEADERS, END_HEADERS, 1, b"\0\xff" + b"\xff" * 20_000))
        (goodbye,) = [frame for frame in peer.rest() if frame.type == GOAWAY]
        assert len(goodbye.additional_data) <= 200


def test_what_is_remembered_of_heads_is_bounded() -> None:
    reader, encoder = HeadReader(), hpack.Encoder()
    long = [("long", "x" * 3000)]
    reader.read(bytes(encoder.encode(long)))
    block = bytes(encoder.encode(long))
    head = request_fields(ECHO)
    tracemalloc.start()
    for number in range(5000):
        different = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in (*head, ("number", str(number)))])
        assert reader.read(block * 4 + bytes(different)).path == ECHO
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 4 * MAX_MEMO_BYTES


def test_calls_that_wait_for_room_get_it_in_turn_whoever_gives_up(wire: RunningWire) -> None:
    size, calls = 10_000, range(1, 60, 2)
    with BarePeer(wire.address) as peer:
        peer.socket.settimeout(PATIENCE_SECONDS)
        peer.send(*(peer.call(stream, COUNT, b"1 %d" % size) for stream in calls))
        peer.wait(lambda: sum(len(answer.body) for answer in peer.answers.values()) == DEFAULT_WINDOW)
        peer.wait(lambda: all(peer.answers.get(stream) for stream in calls))
        waiting = [stream for stream in calls if not peer.answers[stream].has_ended]
        given_up = waiting[:3] + waiting[4::2]
        peer.send(*(raw(RST_STREAM, 0, stream, CANCEL) for stream in given_up))
        for more_bytes in (*[100] * 200, size * len(calls)):
            peer.send(raw(WINDOW_UPDATE, 0, 0, more_bytes.to_bytes(4, "big")))
        for stream in set(calls) - set(given_up):
            assert peer.answer(stream).messages == [letter(0) * size]


@pytest.mark.parametrize("written", [b"1 300000", b"300 1000"], ids=["a large reply", "many small replies"])
def test_a_call_that_can_write_all_at_once_lets_others_write_in_between(wire: RunningWire, written: bytes) -> None:
    with BarePeer(wire.address, {INITIAL_WINDOW_SIZE: 2**20}) as peer:
        peer.send(raw(WINDOW_UPDATE, 0, 0, (2**20).to_bytes(4, "big")))
        peer.send(peer.call(1, WRITE, written), peer.call(3, ECHO, b"small"))
        assert peer.answer(3).messages == [b"small"]
        assert not peer.answers[1].has_ended
        assert sum(map(len, peer.answer(1).messages)) == 300_000


AT_MOST = Limits(max_message_bytes=100_000, max_concurrent_calls=12, max_streams_per_connection=8)
ACTS: dict[str, Callable[[BarePeer, int, int], bytes]] = {
    "echo": lambda peer, stream, size: peer.call(stream, ECHO, bytes(size)),
    "wait": lambda peer, stream, size: peer.call(stream, WAIT, bytes(size)),
    "wait a moment": lambda peer, stream, size: peer.head(stream, WAIT, [("grpc-timeout", f"{size}u")]),
    "count": lambda peer, stream, size: peer.call(stream, COUNT, b"3 %d" % size),
    "abort": lambda peer, stream, size: peer.call(stream, ABORT, b"1"),
    "mirror": lambda peer, stream, size: peer.head(stream, MIRROR) + raw(DATA, 0, stream, message(bytes(size // 4)) * 2),
    "listen": lambda peer, stream, size: peer.head(stream, LISTEN) + raw(DATA, 0, stream, message(bytes(size // 4)) * 2),
    "send half a message": lambda peer, stream, size: peer.head(stream, ECHO) + raw(DATA, 0, stream, message(bytes(size))[:-1]),
    "break off": lambda peer, stream, size: raw(DATA, END_STREAM, max(1, stream - 2), b"\0\0"),
    "say more": lambda peer, stream, size: raw(DATA, 0, max(1, stream - 2), message(b"more")),
    "end": lambda peer, stream, size: raw(DATA, END_STREAM, max(1, stream - 2)),
    "give up": lambda peer, stream, size: raw(RST_STREAM, 0, max(1, stream - 2), CANCEL),
    "give up an older one": lambda peer, stream, size: raw(RST_STREAM, 0, max(1, stream - 6), CANCEL),
    "take more": lambda peer, stream, size: raw(WINDOW_UPDATE, 0, 0, (size + 1).to_bytes(4, "big")),
    "take more of a call": lambda peer, stream, size: raw(WINDOW_UPDATE, 0, max(1, stream - 2), (size + 1).to_bytes(4, "big")),
    "set the window": lambda peer, stream, size: raw(SETTINGS, 0, 0, b"\0\4" + size.to_bytes(4, "big")),
    "say something wrong": lambda peer, stream, size: raw(PUSH_PROMISE, 0, 1, bytes(8)),
}
"""What clients do, with the next stream and some size."""
OPENING = {"echo", "wait", "wait a moment", "count", "abort", "mirror", "listen", "send half a message"}
steps = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(ACTS)), st.integers(0, 60_000)), min_size=5, max_size=60)


def count_calls_let_in(wire: RunningWire) -> None:
    """Check that there is room for just as many calls as there should be where there are none."""
    with BarePeer(wire.address) as one, BarePeer(wire.address) as other:
        for peer, many in (one, 8), (other, 4):
            peer.send(*(peer.call(stream, WAIT, b"") for stream in range(1, 2 * many, 2)), raw(PING, 0, 0, bytes(8)))
            while not peer.of_kind(PING):
                peer.pump()
            assert not any(answer.heads for answer in peer.answers.values())
        other.send(other.call(9, ECHO, b""))
        assert other.answer(9).status[0] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    while wire.count_connections():
        pass


@pytest.mark.parametrize("loop", LOOPS)
def test_whatever_clients_do_every_call_is_counted_out(loop: str) -> None:
    @given(steps)
    @settings(max_examples=60)
    def check(acts: list[tuple[int, str, int]]) -> None:
        with ExitStack() as stack:
            peers = [stack.enter_context(BarePeer(running.address)) for _ in range(4)]
            streams = dict.fromkeys(range(4), 1)
            for number, name, size in acts:
                send_as_long_as_taken(peers[number], iter([ACTS[name](peers[number], streams[number], size)]))
                streams[number] += 2 * (name in OPENING)
        while running.count_connections():
            pass
        count_calls_let_in(running)

    with wired(loop, limits=AT_MOST) as running:
        check()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux can be asked how long it waits for clients")
def test_clients_that_vanish_are_noticed(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer, find_accepted(peer.socket) as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == GONE_SECONDS
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * GONE_SECONDS


def find_accepted(client: socket.socket) -> socket.socket:
    """Find the other end of a connection in this process."""
    while True:
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(number))) as found:
                        if found.getpeername() == client.getsockname():
                            return found.dup()


def test_calls_leave_nothing_that_only_the_garbage_collector_finds(wire: RunningWire) -> None:
    gc.collect()
    gc.disable()
    try:
        with BarePeer(wire.address, {INITIAL_WINDOW_SIZE: 100}) as peer:
            for stream in range(1, 400, 8):
                peer.send(peer.call(stream, ECHO, bytes(1000)), raw(WINDOW_UPDATE, 0, stream, (2000).to_bytes(4, "big")))
                peer.send(peer.call(stream + 2, ABORT, b"1"), peer.head(stream + 4, MIRROR) + raw(DATA, 0, stream + 4, b"\0"))
                peer.send(give_up(peer, stream + 6), raw(RST_STREAM, 0, stream + 4, CANCEL))
                peer.answer(stream)
                peer.answer(stream + 2)
        while wire.count_connections():
            pass
        assert not [each for each in gc.get_objects() if type(each) is Call]
        until = time.monotonic() + PATIENCE_SECONDS
        while (left := [each for each in gc.get_objects() if type(each) is Connection]) and time.monotonic() < until:
            pass  # the event loop has told it of its end, and is about to let go of it
        assert not left
    finally:
        gc.enable()

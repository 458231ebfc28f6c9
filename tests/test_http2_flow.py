"""Clients that take little, late or nothing lose nothing and hold up nobody; calls that are given up are over at once."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from tests.peers import DATA, GOAWAY, PING, RST_STREAM, WINDOW_UPDATE, BarePeer, H2Peer, Response, message, raw
from tests.wire import COUNT, ECHO, JOIN, LIMITS, LISTEN, LOOPS, MIRROR, PERSIST, WAIT, WRITE, RunningWire, letter, wired

INITIAL_WINDOW, MAX_FRAME = 4, 5
MB = 2**20


@pytest.fixture(scope="module", params=LOOPS)
def wire(request: pytest.FixtureRequest) -> Iterator[RunningWire]:
    with wired(request.param) as wire:
        yield wire


def has_come(answer: Response, size: int) -> bool:
    """Whether so much of an answer is here."""
    return len(answer.body) >= size


@pytest.mark.parametrize("window", [1, 7, 100])
def test_a_tiny_window_holds_nothing_back_for_good(wire: RunningWire, window: int) -> None:
    with H2Peer(wire.address, {INITIAL_WINDOW: window}) as peer:
        first, second = peer.call(COUNT, b"20 50"), peer.call(ECHO, b"x" * 500)
        assert peer.answer(first).messages == [letter(number) * 50 for number in range(20)]
        assert peer.answer(second).messages == [b"x" * 500]


@pytest.mark.parametrize("method", [COUNT, WRITE])
def test_a_window_that_opens_late_lets_through_exactly_what_it_says(wire: RunningWire, method: str) -> None:
    with H2Peer(wire.address, {INITIAL_WINDOW: 0}, takes_all=False) as peer:
        stream = peer.call(method, b"30 1000")
        answer, whole = peer.answers[stream], 30 * 1005
        peer.wait(lambda: answer.heads)
        for size in (1, 4, 5, 1000, 20_000):
            wanted = len(answer.body) + size
            peer.take(size, stream)
            peer.wait(partial(has_come, answer, wanted))
            assert len(answer.body) == wanted
        assert not answer.has_ended
        peer.take(whole, stream)
        assert peer.answer(stream).messages == [letter(number) * 1000 for number in range(30)]


def test_the_window_of_the_connection_is_shared_and_holds_back_no_empty_answer(wire: RunningWire) -> None:
    with H2Peer(wire.address, {INITIAL_WINDOW: MB}, takes_all=False) as peer:
        large = [peer.call(ECHO, b"x" * 50_000) for _ in range(3)]
        peer.wait(lambda: sum(len(peer.answers[stream].body) for stream in large) == 65_535)
        failed = peer.call("/wire/None", b"")
        assert peer.answer(failed).status[0] == 12
        peer.take(200_000)
        assert [peer.answer(stream).messages for stream in large] == [[b"x" * 50_000]] * 3


def test_windows_that_shrink_below_what_was_sent_are_kept_to(wire: RunningWire) -> None:
    with H2Peer(wire.address, {INITIAL_WINDOW: 1000}, takes_all=False) as peer:
        stream = peer.call(ECHO, b"x" * 5000)
        answer = peer.answers[stream]
        peer.wait(lambda: len(answer.body) == 1000)
        peer.h2.update_settings({INITIAL_WINDOW: 10})
        peer.flush()
        peer.take(990, stream)
        peer.h2.ping(b"settled?")
        peer.flush()
        peer.take(1, stream)
        peer.wait(lambda: len(answer.body) == 1001)
        peer.h2.update_settings({INITIAL_WINDOW: 100_000})
        peer.flush()
        assert peer.answer(stream).messages == [b"x" * 5000]


@pytest.mark.parametrize("longest", [2**14, 2**16, 2**24 - 1])
def test_frames_are_as_long_as_the_client_takes_and_no_longer(wire: RunningWire, longest: int) -> None:
    with BarePeer(wire.address, {INITIAL_WINDOW: 2**30, MAX_FRAME: longest}) as peer:
        peer.send(raw(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4)), peer.call(1, COUNT, b"1 1000000"))
        assert peer.answer(1).messages == [b"\0" * 1_000_000]
        assert max(frame.body_len for frame in peer.of_kind(DATA)) <= min(longest, 2**16)


def test_a_client_that_does_not_read_holds_up_itself_alone(wire: RunningWire) -> None:
    with (
        BarePeer(wire.address, {INITIAL_WINDOW: 2**31 - 1}) as slow,
        H2Peer(wire.address) as neighbour,
    ):
        slow.send(raw(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4)), slow.call(1, COUNT, b"300 100000"))
        slow.pump()
        assert neighbour.answer(neighbour.call(ECHO, b"x")).messages == [b"x"]
        assert slow.answer(1).messages == [letter(number) * 100_000 for number in range(300)]


def test_requests_that_are_not_read_hold_back_their_client(wire: RunningWire) -> None:
    with H2Peer(wire.address) as peer:
        stream = peer.begin(LISTEN)
        assert wire.seen.get() == "listen begins"
        peer.wait(lambda: peer.h2.local_flow_control_window(stream) == MB)
        peer.send(stream, message(b"") + message(bytes(MB))[: MB - 5])
        echo = peer.call(ECHO, b"meanwhile")
        assert peer.answer(echo).messages == [b"meanwhile"]
        assert not peer.h2.local_flow_control_window(stream)
        peer.h2.reset_stream(stream)
        peer.flush()
        assert wire.seen.get() == "listen is cancelled"


def test_a_client_that_sends_more_than_it_may_loses_its_call_alone(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.head(1, LISTEN), *[raw(DATA, 0, 1, message(bytes(2**14 - 5)))] * 65)
        assert wire.seen.get() == "listen begins"
        assert peer.answer(1).status == (13, "the caller has sent more than it may")
        assert wire.seen.get() == "listen is cancelled"
        peer.send(peer.call(3, ECHO, b"next"))
        assert peer.answer(3).messages == [b"next"]


def test_a_deadline_ends_calls_that_wait_for_room(wire: RunningWire) -> None:
    with H2Peer(wire.address, {INITIAL_WINDOW: 10}, takes_all=False) as peer:
        streams = [
            peer.call(method, request, [("grpc-timeout", "50m")]) for method, request in ((ECHO, bytes(99)), (WRITE, b"9 9"))
        ]
        for stream in streams:
            assert (len(peer.answer(stream).body), peer.answer(stream).status[0]) == (10, 4)


def test_a_client_that_breaks_a_rule_and_does_not_read_ends_at_once(wire: RunningWire) -> None:
    with BarePeer(wire.address, {INITIAL_WINDOW: 2**31 - 1}) as peer:
        peer.send(raw(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4)), peer.call(1, WRITE, b"300 100000"), peer.call(3, WAIT, b""))
        assert wire.seen.get() == "wait begins"
        peer.send(raw(DATA, 0, 0))
        assert wire.seen.get() == "wait is cancelled"


def test_large_messages_both_ways_at_once_are_whole(wire: RunningWire) -> None:
    with H2Peer(wire.address) as peer:
        stream = peer.begin(MIRROR)
        sent = [bytes([number]) * MB for number in range(8)]
        for each in sent:
            peer.send(stream, message(each))
        peer.send(stream, b"", is_last=True)
        assert peer.answer(stream).messages == sent


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_reset_cancels_the_handler_and_nothing_more_is_said(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.call(1, WAIT, b""))
        assert wire.seen.get() == "wait begins"
        peer.send(raw(RST_STREAM, 0, 1, b"\0\0\0\x08"))
        assert wire.seen.get() == "wait is cancelled"
        peer.send(peer.call(3, ECHO, b"next"))
        assert peer.answer(3).messages == [b"next"]
        assert not [frame for frame in peer.frames if frame.stream_id == 1]


def test_calls_that_are_reset_make_room_for_others(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(*(peer.head(stream, MIRROR) + raw(RST_STREAM, 0, stream, bytes(4)) for stream in range(1, 401, 2)))
        peer.send(peer.call(401, ECHO, b"room"))
        assert peer.answer(401).messages == [b"room"]


def test_a_client_that_goes_ends_all_its_calls(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.call(1, WAIT, b""), peer.head(3, LISTEN))
        assert sorted([wire.seen.get(), wire.seen.get()]) == ["listen begins", "wait begins"]
    assert sorted([wire.seen.get(), wire.seen.get()]) == ["listen is cancelled", "wait is cancelled"]


def test_a_handler_that_goes_on_finds_its_call_ended(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.head(1, PERSIST, [("grpc-timeout", "1m")]))
        assert [wire.seen.get(), wire.seen.get()] == ["the call has ended"] * 2
        assert peer.answer(1).status[0] == 4


def test_the_window_of_the_connection_opens_again(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.wait(lambda: peer.of_kind(WINDOW_UPDATE))
        (first,) = peer.of_kind(WINDOW_UPDATE)
        peer.send(peer.call(1, ECHO, b""))
        peer.answer(1)
        late = raw(DATA, 0, 1, bytes(2**16)) * 16
        for _ in range((first.window_increment + 65_535) // 2**21 + 1):
            peer.send(late)
        peer.wait(lambda: len(peer.of_kind(WINDOW_UPDATE)) == 2)
        assert peer.of_kind(WINDOW_UPDATE)[1].window_increment > 2**29


def test_an_answer_may_come_before_the_end_of_the_requests(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.head(1, MIRROR), raw(DATA, 0, 1, message(b"first")))
        peer.wait(lambda: 1 in peer.answers and peer.answers[1].messages)
        peer.send(raw(DATA, 1, 1))
        assert peer.answer(1).messages == [b"first"]
        assert peer.answer(1).status == (0, "")


def test_calls_over_a_connections_limit_are_refused_as_never_begun() -> None:
    with wired(limits=replace(LIMITS, max_streams_per_connection=2)) as wire, BarePeer(wire.address) as peer:
        peer.send(peer.call(1, WAIT, b"1"), peer.call(3, WAIT, b"3"), peer.call(5, ECHO, b"5"))
        assert peer.answer(5).reset == 7
        wire.open_gate()
        assert [peer.answer(stream).messages for stream in (1, 3)] == [[b"1"], [b"3"]]
        peer.send(peer.call(7, ECHO, b"7"))
        assert peer.answer(7).messages == [b"7"]


def test_a_client_that_gives_up_call_after_call_is_cut_off(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        streams = itertools.count(1, 2)
        while not peer.of_kind(GOAWAY):
            given_up = (peer.head(stream, JOIN) + raw(RST_STREAM, 0, stream, bytes(4)) for stream in itertools.islice(streams, 100))
            peer.frames.clear()
            peer.send(*given_up, raw(PING, 0, 0, bytes(8)))
            peer.wait(lambda: peer.frames and peer.frames[-1].type in (PING, GOAWAY))
        assert peer.frames[-1].error_code == 11
        assert next(streams) > 2000

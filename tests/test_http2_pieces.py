"""However a client's bytes are cut on their way, and whatever they are, they are read as if they came at once."""

import asyncio
from collections.abc import Iterable
from functools import cache
from typing import Any

import hpack
from hyperframe.frame import Frame as Seen
from hypothesis import given
from hypothesis import strategies as some

from tests.peers import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITY,
    SETTINGS,
    cut,
    message,
    raw,
    request_fields,
)
from tests.wire import ABORT, COUNT, ECHO, JOIN, LIMITS, MIRROR, Methods
from twinfer_server.http2 import Server
from twinfer_server.http2.frames import ConnectionFault
from twinfer_server.http2.reading import FrameReader

BEGINNING = PREFACE + raw(SETTINGS, 0, 0)

places = some.lists(some.integers(0), max_size=20)
frames = some.builds(
    raw,
    some.integers(0, 11),
    some.sampled_from([0, ACK, END_HEADERS, PADDED, HAS_PRIORITY, END_HEADERS | PADDED, END_HEADERS | PADDED | HAS_PRIORITY, 0xFF]),
    some.sampled_from([0, 1, 1, 3, 2**31 + 1]),
    some.binary(max_size=12) | some.sampled_from([bytes(4), bytes(5), bytes(8)]),
)


def read(pieces: Iterable[bytes]) -> list[Any]:
    """Read all frames, and the error with which they end."""
    reader, found = FrameReader(), list[Any]()
    try:
        for piece in pieces:
            found.extend((each.kind, each.flags, each.stream, each.payload, each.size) for each in reader.read(piece))
    except ConnectionFault as fault:
        found.append((fault.code, str(fault)))
    return found


@given(some.lists(frames, max_size=8), places)
def test_frames_are_the_same_however_they_are_cut(sent: list[bytes], places: list[int]) -> None:
    whole = BEGINNING + b"".join(sent)
    assert read(cut(whole, places)) == read([whole]) == read(whole[at : at + 1] for at in range(len(whole)))


@given(some.booleans(), some.lists(some.binary(max_size=40) | frames, max_size=8))
def test_any_bytes_are_frames_or_break_a_rule(has_begun: bool, pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in [BEGINNING] * has_begun + pieces:
            assert all(each.begin <= each.end <= len(each.data) for each in reader.read(piece))
    except ConnectionFault:
        return


# --- connections ------------------------------------------------------------------------------------------------------


def conversation() -> bytes:
    """Write calls of every kind, in frames of every kind, mixed."""
    encoder = hpack.Encoder()

    def head(stream: int, path: str, flags: int = END_HEADERS) -> bytes:
        return raw(HEADERS, flags, stream, encoder.encode([*request_fields(path), ("call", f"number {stream}")]))

    split = encoder.encode(request_fields(MIRROR))
    return b"".join(
        [
            BEGINNING,
            raw(HEADERS, 0, 1, split[:2]) + raw(CONTINUATION, 0, 1, split[2:9]) + raw(CONTINUATION, END_HEADERS, 1, split[9:]),
            head(3, JOIN) + raw(DATA, PADDED, 3, b"\x03" + message(b"one")[:6] + bytes(3)) + raw(SETTINGS, ACK, 0),
            raw(DATA, 0, 1, message(b"first") + message(b"second")[:2]) + raw(PRIORITY, 0, 7, bytes(5)),
            head(5, ECHO) + raw(DATA, 0, 3, message(b"one")[6:] + message(b"two")) + raw(DATA, 0, 5, message(b"x" * 300)),
            head(7, COUNT) + raw(DATA, END_STREAM, 7, message(b"5 20")) + raw(DATA, END_STREAM, 5) + raw(DATA, END_STREAM, 3),
            head(9, ABORT) + raw(DATA, END_STREAM, 9, message(b"1")) + head(11, "/wire/None") + raw(DATA, END_STREAM, 11),
            raw(DATA, 0, 1, message(b"second")[2:]) + raw(HEADERS, END_HEADERS | END_STREAM, 1, encoder.encode([("sum", "1")])),
        ]
    )


CONVERSATION = conversation()
STREAMS = set(range(1, 12, 2))


async def hold(pieces: Iterable[bytes]) -> dict[int, list[Any]]:
    """Send the pieces one by one to a server; gives the heads, the bytes of messages and the trailers of each stream."""
    server, decoder = Server(LIMITS), hpack.Decoder()
    server.add_generic_rpc_handlers((Methods(),))
    host, _, port = (await server.start("127.0.0.1:0")).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    found: dict[int, list[Any]] = {stream: [b""] for stream in STREAMS}
    ended: set[int] = set()
    while ended != STREAMS:
        each: Any
        each, size = Seen.parse_frame_header(memoryview(await reader.readexactly(9)))
        each.parse_body(memoryview(await reader.readexactly(size)))
        if each.type == HEADERS:
            found[each.stream_id].append(decoder.decode(each.data))
        elif each.type == DATA:
            found[each.stream_id][0] += each.data
        if "END_STREAM" in each.flags:
            ended.add(each.stream_id)
    writer.close()
    await writer.wait_closed()
    await server.stop(0)
    return found


@cache
def hold_whole() -> dict[int, list[Any]]:
    """Give what comes when all is sent in one piece."""
    return asyncio.run(hold([CONVERSATION]))


@given(places)
def test_calls_are_answered_the_same_however_their_bytes_are_cut(places: list[int]) -> None:
    assert asyncio.run(hold(cut(CONVERSATION, places))) == hold_whole()


def test_calls_are_answered_the_same_when_each_byte_comes_alone() -> None:
    assert asyncio.run(hold(cut(CONVERSATION, list(range(len(CONVERSATION)))))) == hold_whole()


def test_the_conversation_is_about_something() -> None:
    whole = hold_whole()
    assert [bytes(whole[stream][0]) for stream in (1, 3)] == [message(b"first") + message(b"second"), message(b"onetwo")]
    assert [dict(whole[stream][-1])["grpc-status"] for stream in sorted(STREAMS)] == ["0", "0", "0", "0", "15", "12"]

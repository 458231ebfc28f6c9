"""Calls of all kinds that `grpc`'s clients make come through whole and in order, and end as they should."""

import ast
import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from tests.wire import (
    ABORT,
    COUNT,
    DETAILS,
    ECHO,
    FAIL,
    JOIN,
    LIMITS,
    LOOPS,
    MIRROR,
    TELL,
    TRAILING,
    WAIT,
    WRITE,
    RunningWire,
    letter,
    wired,
)

KB, MB = 2**10, 2**20
SIZES = [0, 1, 5, *(edge * KB + more for edge in (16, 64) for more in (-5, -1, 0, 1)), MB, 10 * MB]
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module", params=LOOPS)
def wire(request: pytest.FixtureRequest) -> Iterator[RunningWire]:
    with wired(request.param) as wire:
        yield wire


@pytest.fixture
def channel(wire: RunningWire) -> Iterator[Any]:
    with grpc.insecure_channel(wire.address, OPTIONS) as channel:
        yield channel


def made_of(size: int) -> bytes:
    """Bytes in which none can change places unseen."""
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_size_comes_back_whole(channel: Any, size: int) -> None:
    assert channel.unary_unary(ECHO)(made_of(size)) == made_of(size)


@pytest.mark.parametrize("size", SIZES)
def test_a_stream_of_messages_of_any_size_comes_back_whole_and_in_order(channel: Any, size: int) -> None:
    sent = [made_of(size), b"", made_of(size)[::-1], b"end"]
    assert list(channel.stream_stream(MIRROR)(iter(sent))) == sent


@pytest.mark.parametrize("method", [COUNT, WRITE])
def test_streams_of_replies_come_in_order_whether_generated_or_written(channel: Any, method: str) -> None:
    assert list(channel.unary_stream(method)(b"300 1000")) == [letter(number) * 1000 for number in range(300)]


@pytest.mark.parametrize("method", [COUNT, WRITE])
def test_a_stream_without_replies_is_a_stream(channel: Any, method: str) -> None:
    assert list(channel.unary_stream(method)(b"0 0")) == []


def test_a_stream_of_requests_is_read_to_its_end(channel: Any) -> None:
    sent = [letter(number) * 10_000 for number in range(200)]
    assert channel.stream_unary(JOIN)(iter(sent)) == b"".join(sent)


def test_a_stream_without_requests_is_a_stream(channel: Any) -> None:
    assert channel.stream_unary(JOIN)(iter(())) == b""


def test_a_conversation_goes_back_and_forth(channel: Any) -> None:
    said: SimpleQueue[bytes | None] = SimpleQueue()
    said.put(b"begin")
    heard = []
    for reply in channel.stream_stream(MIRROR)(iter(said.get, None)):
        heard.append(reply)
        said.put(reply + b"!" if len(heard) < 50 else None)
    assert heard == [b"begin" + b"!" * number for number in range(50)]


def test_many_calls_of_many_sizes_share_one_connection(wire: RunningWire, channel: Any) -> None:
    sizes = [size for _ in range(8) for size in (0, 10, 70_000, 300, MB, 5_000, 16_384)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(channel.unary_unary(ECHO), map(made_of, sizes)))
    assert replies == [made_of(size) for size in sizes]


def test_the_asynchronous_client_makes_all_four_kinds_of_calls_at_once(wire: RunningWire) -> None:
    async def talk() -> Any:
        channel: Any
        async with grpc.aio.insecure_channel(wire.address, OPTIONS) as channel:

            async def gather(call: Any) -> list[bytes]:
                return [reply async for reply in call]

            return await asyncio.gather(
                channel.unary_unary(ECHO)(made_of(MB)),
                gather(channel.unary_stream(COUNT)(b"30 100000")),
                channel.stream_unary(JOIN)([made_of(MB), b"x", made_of(10)]),
                gather(channel.stream_stream(MIRROR)([made_of(100_000), b"", made_of(MB)])),
            )

    echoed, counted, joined, mirrored = asyncio.run(talk())
    assert echoed == made_of(MB)
    assert counted == [letter(number) * 100_000 for number in range(30)]
    assert joined == made_of(MB) + b"x" + made_of(10)
    assert mirrored == [made_of(100_000), b"", made_of(MB)]


# --- metadata, statuses, deadlines ------------------------------------------------------------------------------------


def test_metadata_comes_as_it_was_sent(channel: Any) -> None:
    sent = [
        ("plain", "one"),
        ("plain", "two"),
        ("empty", ""),
        ("some-bin", bytes(range(256))),
        ("none-bin", b""),
        ("some-bin", b"\0"),
    ]
    metadata, seconds = ast.literal_eval(channel.unary_unary(TELL)(b"", metadata=sent).decode())
    assert [entry for entry in metadata if entry[0] != "user-agent"] == sent
    assert seconds is None


def test_metadata_under_16_kilobytes_is_taken(channel: Any) -> None:
    reply = channel.unary_unary(TELL)(b"", metadata=[("long", "x" * 15_000)])
    assert b"x" * 15_000 in reply


@pytest.mark.parametrize("before", [0, 2])
def test_an_abort_says_code_details_and_trailing_metadata_before_and_behind_replies(channel: Any, before: int) -> None:
    call = channel.unary_stream(ABORT)(b"%d" % before)
    assert [next(call) for _ in range(before)] == [b"before"] * before
    with pytest.raises(grpc.RpcError):
        next(call)
    assert (call.code(), call.details()) == (grpc.StatusCode.DATA_LOSS, DETAILS)
    assert tuple(map(tuple, call.trailing_metadata())) == TRAILING


def test_a_handler_that_fails_ends_its_call_with_unknown_and_tells_no_secrets(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(FAIL)(b"1")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNKNOWN, "unexpected RuntimeError")


def test_a_request_that_cannot_be_parsed_is_internal(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(FAIL)(b"no number")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_a_method_that_is_not_served_is_unimplemented(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/wire/None")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "/wire/None" in str(caught.value.details())


def test_handlers_know_how_long_they_have(channel: Any) -> None:
    _, seconds = ast.literal_eval(channel.unary_unary(TELL)(b"", timeout=1000).decode())
    assert 900 < seconds < 1100  # the client rounds


def test_a_deadline_ends_the_call_and_cancels_its_handler(wire: RunningWire, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(WAIT)(b"", timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [wire.seen.get(), wire.seen.get()] == ["wait begins", "wait is cancelled"]


def test_a_client_that_gives_up_cancels_the_handler(wire: RunningWire, channel: Any) -> None:
    call = channel.unary_unary(WAIT).future(b"")
    assert wire.seen.get() == "wait begins"
    call.cancel()
    assert wire.seen.get() == "wait is cancelled"


def test_a_generator_is_closed_when_its_caller_goes(wire: RunningWire, channel: Any) -> None:
    call = channel.unary_stream(COUNT)(b"1000000 10000")
    next(call)
    call.cancel()
    assert wire.seen.get() == "count is closed"


# --- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [100, MB])
def test_compressed_requests_are_unfolded(channel: Any, compression: grpc.Compression, size: int) -> None:
    sent = [made_of(size), b"x" * size, b""]
    assert channel.unary_unary(ECHO)(sent[0], compression=compression) == sent[0]
    assert list(channel.stream_stream(MIRROR)(iter(sent), compression=compression)) == sent


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_message_over_the_limit_is_refused_and_its_neighbours_are_answered(channel: Any) -> None:
    call = channel.unary_unary(ECHO)
    neighbours = [call.future(made_of(MB)) for _ in range(3)]
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(LIMITS.max_message_bytes + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMITS.max_message_bytes) in str(caught.value.details())
    assert [each.result() for each in neighbours] == [made_of(MB)] * 3
    assert len(call(bytes(LIMITS.max_message_bytes))) == LIMITS.max_message_bytes


def test_a_bomb_is_refused(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(ECHO)(bytes(LIMITS.max_message_bytes + 1), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_over_the_limit_are_refused_until_one_ends() -> None:
    channel: Any
    with wired(limits=replace(LIMITS, max_concurrent_calls=2)) as wire, grpc.insecure_channel(wire.address) as channel:
        waiting = [channel.unary_unary(WAIT).future(b"x") for _ in range(2)]
        assert [wire.seen.get(), wire.seen.get()] == ["wait begins"] * 2
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(ECHO)(b"")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "calls: found 3 at once; allowed: 2 (max_concurrent_calls)"
        wire.open_gate()
        assert [each.result() for each in waiting] == [b"x", b"x"]
        assert channel.unary_unary(ECHO)(b"again") == b"again"


def test_calls_that_are_free_take_no_place_and_need_none() -> None:
    channel: Any
    limits = replace(LIMITS, max_concurrent_calls=1, free=frozenset({WAIT}))
    with wired(limits=limits) as wire, grpc.insecure_channel(wire.address) as channel:
        waiting = [channel.unary_unary(WAIT).future(b"x") for _ in range(3)]
        assert [wire.seen.get() for _ in waiting] == ["wait begins"] * 3
        assert channel.unary_unary(ECHO)(b"y") == b"y"
        wire.open_gate()
        assert [each.result() for each in waiting] == [b"x"] * 3

"""The load: closed loops of rows against one server, by every way that it answers rows, each answer checked.

Messages are serialized beforehand and replies parsed afterwards, so that the figures are the server's and not this client's.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.harness import cpu_seconds
from benchmarks.peers.pairs import PAIRS
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb

ROWS = 256
BATCH_ROWS = 32
TOLERANCE = 1e-5
WARM_SECONDS = 0.3
TIMEOUT_SECONDS = 30.0
SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleService"].full_name

Replies = list[tuple[int, bytes]]
"""What came back, each with the number of its row, or of its batch."""


@dataclass(frozen=True, slots=True)
class Load:
    """Different rows, serialized, and the probabilities that each must get, float32 [rows, classes]."""

    requests: tuple[bytes, ...]
    expected: NDArray[np.float32]

    @classmethod
    def make(cls, pair: str) -> "Load":
        """Make the load of a pair; their ids are their numbers."""
        rows = PAIRS[pair].rows(ROWS)
        requests = tuple(make_request(row, request_id=f"{number:03}").SerializeToString() for number, row in enumerate(rows))
        return cls(requests, PAIRS[pair].expect(rows))

    def check(self, number: int, reply: pb.InferResponse) -> None:
        """Compare an answer with what plain torch gives; raises RuntimeError."""
        classes = reply.prediction.classification.classes
        found = np.array([scored.probability for scored in classes])
        right = self.expected[number][[scored.index for scored in classes]]
        if not len(classes) or reply.degraded or not np.abs(found - right).max() <= TOLERANCE:
            raise RuntimeError(f"row {number}: found {found}, degraded {reply.degraded}; right: {right}")


@dataclass(frozen=True, slots=True)
class Served:
    """What one closed loop found; latencies are of calls, and on a stream of rows."""

    rows_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms_per_row: float


@dataclass(slots=True)
class _Tally:
    """Counts answers as they come."""

    replies: Replies
    latencies: list[float]
    is_over: bool = False

    def add(self, number: int, reply: bytes, began: float) -> None:
        self.latencies.append(time.perf_counter() - began)
        self.replies.append((number, reply))


Way = Callable[[grpc.aio.Channel, Load, int, _Tally], Awaitable[None]]


async def _ask_one_by_one(channel: grpc.aio.Channel, load: Load, in_flight: int, tally: _Tally) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Infer")
    turns = itertools.cycle(enumerate(load.requests))
    await _repeat(call, turns, in_flight, tally)


async def _ask_in_batches(channel: grpc.aio.Channel, load: Load, in_flight: int, tally: _Tally) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/BatchInfer")
    requests = [pb.InferRequest.FromString(request) for request in load.requests]
    batches = [
        pb.BatchInferRequest(requests=requests[first : first + BATCH_ROWS]).SerializeToString()
        for first in range(0, ROWS, BATCH_ROWS)
    ]
    await _repeat(call, itertools.cycle(enumerate(batches)), in_flight // BATCH_ROWS, tally)


async def _repeat(
    call: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", turns: Iterator[tuple[int, bytes]], calls: int, tally: _Tally
) -> None:
    async def caller() -> None:
        while not tally.is_over:
            number, message = next(turns)
            began = time.perf_counter()
            tally.add(number, await call(message, timeout=TIMEOUT_SECONDS), began)

    await asyncio.gather(*(caller() for _ in range(calls)))


async def _ask_over_a_stream(channel: grpc.aio.Channel, load: Load, in_flight: int, tally: _Tally) -> None:
    open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/InferStream")
    call = open_stream()
    messages = [pb.InferStreamRequest(request=pb.InferRequest.FromString(row)).SerializeToString() for row in load.requests]
    room, began = asyncio.Semaphore(in_flight), [0.0] * ROWS

    async def send() -> None:
        for number in itertools.cycle(range(ROWS)):
            await room.acquire()
            if tally.is_over:
                break
            began[number] = time.perf_counter()
            await call.write(messages[number])
        await call.done_writing()

    sender = asyncio.create_task(send())
    async for reply in call:
        number = int(reply[2 : 2 + reply[1]])  # the first field, and short: the request's id
        tally.add(number, reply, began[number])
        room.release()
    await sender


WAYS: dict[str, Way] = {"Infer": _ask_one_by_one, "InferStream": _ask_over_a_stream, "BatchInfer": _ask_in_batches}


def ask_first(address: str, load: Load) -> None:
    """Ask one row, as soon as somebody answers."""
    with grpc.insecure_channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Infer")
        load.check(0, pb.InferResponse.FromString(call(load.requests[0], timeout=TIMEOUT_SECONDS, wait_for_ready=True)))


def run_load(address: str, pid: int, load: Load, way: str, in_flight: int, seconds: float) -> Served:
    """Keep `in_flight` rows under way for `seconds`, after a short warm-up; raises RuntimeError for a wrong answer."""
    return uvloop.run(_run(address, pid, load, way, in_flight, seconds))


async def _run(address: str, pid: int, load: Load, way: str, in_flight: int, seconds: float) -> Served:
    tally = _Tally([], [])
    async with grpc.aio.insecure_channel(address) as channel:
        asking = asyncio.ensure_future(WAYS[way](channel, load, in_flight, tally))
        await asyncio.sleep(WARM_SECONDS)
        first, cpu_before, began = len(tally.latencies), cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(seconds)
        last, cpu_after, ended = len(tally.latencies), cpu_seconds(pid), time.perf_counter()
        tally.is_over = True
        await asking
    _check(load, way, tally.replies)
    taken = sorted(tally.latencies[first:last])
    rows = (last - first) * (BATCH_ROWS if way == "BatchInfer" else 1)
    return Served(
        rows_per_second=rows / (ended - began),
        p50_ms=statistics.median(taken) * 1e3,
        p99_ms=taken[int(0.99 * len(taken))] * 1e3,
        server_cpu_ms_per_row=(cpu_after - cpu_before) / rows * 1e3,
    )


def _check(load: Load, way: str, replies: Sequence[tuple[int, bytes]]) -> None:
    for number, reply in replies:
        match way:
            case "Infer":
                load.check(number, pb.InferResponse.FromString(reply))
            case "InferStream":
                load.check(number, pb.InferStreamResponse.FromString(reply).response)
            case _:
                results = pb.BatchInferResponse.FromString(reply).results
                for place, result in enumerate(results, start=number * BATCH_ROWS):
                    load.check(place, result.response)

"""The load: a closed loop of calls against a server, each answer checked.

The requests are serialized beforehand and the replies parsed afterwards, so that the figures are the server's and not this
client's.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import uvloop

from benchmarks.harness import Server, cpu_seconds
from twinfer import Response, make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.demo import HeldOutRow

METHOD = f"/{pb.DESCRIPTOR.services_by_name['EnsembleService'].full_name}/Infer"
WARM_SECONDS = 0.3
TIMEOUT_SECONDS = 30.0
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, in turn: serialized requests, and the label that each must get."""

    requests: tuple[bytes, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What one closed loop found."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    batch_size: float


def make_load(server: Server, rows: Sequence[HeldOutRow]) -> tuple[Load, float]:
    """Ask every row once; give the load that repeats them, and the accuracy of the answers."""
    requests = tuple(make_request({"image": row.image, "text": row.text}).SerializeToString() for row in rows)
    labels = tuple(_read(reply).label for reply in uvloop.run(_ask_each(server.address, requests)))
    right = sum(label == row.label for label, row in zip(labels, rows, strict=True))
    return Load(requests, labels), right / len(rows)


def run_load(server: Server, load: Load, in_flight: int, seconds: float) -> Served:
    """Keep `in_flight` calls under way for `seconds`, after a short warm-up; raises RuntimeError for a wrong answer."""
    return uvloop.run(_run(server, load, in_flight, seconds))


async def _ask_each(address: str, requests: Sequence[bytes]) -> list[bytes]:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Call = channel.unary_unary(METHOD)
        return [await call(request, timeout=TIMEOUT_SECONDS) for request in requests]


async def _run(server: Server, load: Load, in_flight: int, seconds: float) -> Served:
    turns = itertools.cycle(range(len(load.requests)))
    replies: list[tuple[int, bytes]] = []
    latencies: list[float] = []
    is_over = False

    async def caller() -> None:
        while not is_over:
            turn = next(turns)
            began = time.perf_counter()
            reply = await call(load.requests[turn], timeout=TIMEOUT_SECONDS)
            latencies.append(time.perf_counter() - began)
            replies.append((turn, reply))

    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Call = channel.unary_unary(METHOD)
        callers = [asyncio.create_task(caller()) for _ in range(in_flight)]
        await asyncio.sleep(WARM_SECONDS)
        first, cpu_before, began = len(latencies), cpu_seconds(server.pid), time.perf_counter()
        await asyncio.sleep(seconds)
        last, cpu_after, ended = len(latencies), cpu_seconds(server.pid), time.perf_counter()
        is_over = True
        await asyncio.gather(*callers)
    batch_size = [_check(load, turn, reply) for turn, reply in replies]
    taken = sorted(latencies[first:last])
    return Served(
        requests_per_second=len(taken) / (ended - began),
        p50_ms=statistics.median(taken) * 1e3,
        p99_ms=taken[int(0.99 * len(taken))] * 1e3,
        server_cpu_ms=(cpu_after - cpu_before) / len(taken) * 1e3,
        batch_size=statistics.mean(batch_size[first:last]),
    )


def _check(load: Load, turn: int, reply: bytes) -> int:
    """Compare an answer with what the same row got alone; give the rows that shared its flight."""
    answer = _read(reply)
    if answer.degraded or answer.label != load.labels[turn]:
        raise RuntimeError(f"row {turn}: found {answer.label!r}, degraded {answer.degraded}; right: {load.labels[turn]!r}")
    return answer.timings.batch_size


def _read(reply: bytes) -> Response:
    return Response.from_message(pb.InferResponse.FromString(reply))

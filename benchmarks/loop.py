"""Closed loops: so many requests are under way at all times, in a process of their own that asks.

Messages are serialized beforehand and replies parsed afterwards, so that the figures are the server's and not this client's.
"""

import asyncio
import itertools
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import grpc
import psutil
import uvloop

from benchmarks.harness import cpu_seconds
from twinfer.v1 import ensemble_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleService"].full_name
WARM_SECONDS = 0.3
TIMEOUT_SECONDS = 30.0
PAUSE_SECONDS = 0.01
MAX_START_SECONDS = 120.0

Call = Callable[[bytes], Awaitable[bytes]]


@dataclass(slots=True)
class Tally:
    """The replies as they come, each with the number of its message, until there are enough."""

    replies: list[tuple[int, bytes]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    enough: float = math.inf
    is_over: bool = False

    def add(self, number: int, reply: bytes, began: float) -> None:
        """Note the reply to what was sent at `began`."""
        self.latencies.append(time.perf_counter() - began)
        self.replies.append((number, reply))
        self.is_over = self.is_over or len(self.replies) >= self.enough


class Way(ABC):
    """A way of asking: what is sent, how, and what came back. Made in the process that asks."""

    requests_per_message: ClassVar[int] = 1
    messages: Sequence[bytes]

    @abstractmethod
    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        """Keep so many requests under way until the tally is over."""

    @abstractmethod
    def check(self, number: int, reply: bytes) -> int | None:
        """Check the reply to a message; raises RuntimeError. Returns the size of the batch that it was in, where it says so."""

    async def repeat(self, call: Call, callers: int, tally: Tally, turns: Iterator[int] | None = None) -> None:
        """Have so many callers send a message each, again and again."""
        turns = turns or itertools.cycle(range(len(self.messages)))

        async def caller() -> None:
            while not tally.is_over:
                number = next(turns)
                began = time.perf_counter()
                tally.add(number, await call(self.messages[number]), began)

        await asyncio.gather(*(caller() for _ in range(callers)))


class Unary(Way):
    """Unary calls of a method."""

    method: ClassVar[str] = f"/{SERVICE}/Infer"
    metadata: Sequence[tuple[str, str]] = ()

    def connect(self, address: str) -> grpc.aio.Channel:
        """Open a channel."""
        return grpc.aio.insecure_channel(address)

    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        async with self.connect(address) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(self.method)
            callers = in_flight // self.requests_per_message
            await self.repeat(lambda message: method(message, timeout=TIMEOUT_SECONDS, metadata=self.metadata), callers, tally)


@dataclass(frozen=True, slots=True)
class Served:
    """What one loop found; latencies are of calls, on a stream of requests."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    """For each request."""
    batch_size: float | None
    """The mean over the requests, where the server says so."""


def median_of(runs: Sequence[Served]) -> Served:
    """Return the medians of several loops."""
    sizes = [run.batch_size for run in runs if run.batch_size is not None]
    return Served(
        requests_per_second=statistics.median(run.requests_per_second for run in runs),
        p50_ms=statistics.median(run.p50_ms for run in runs),
        p99_ms=statistics.median(run.p99_ms for run in runs),
        server_cpu_ms=statistics.median(run.server_cpu_ms for run in runs),
        batch_size=statistics.median(sizes) if sizes else None,
    )


def ask_first(make: Callable[[], Way], address: str, pid: int) -> None:
    """Ask until there is an answer, and check it; raises RuntimeError where there is none in two minutes, or the server ends."""
    uvloop.run(_ask_first(make(), address, pid))


async def _ask_first(way: Way, address: str, pid: int) -> None:
    ends = time.monotonic() + MAX_START_SECONDS
    while True:
        tally = Tally(enough=1)
        try:
            await way.ask(address, way.requests_per_message, tally)
        except (grpc.RpcError, OSError, asyncio.IncompleteReadError) as error:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError("it has ended before there was an answer") from error
            if time.monotonic() > ends:
                raise RuntimeError(f"no answer in {MAX_START_SECONDS:g} s") from error
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            way.check(*tally.replies[0])
            return


def run_loop(make: Callable[[], Way], address: str, pid: int, in_flight: int, seconds: float) -> Served:
    """Keep `in_flight` requests under way for `seconds`, after a short warm-up; raises RuntimeError for a wrong answer."""
    return uvloop.run(_run_loop(make(), address, pid, in_flight, seconds))


async def _run_loop(way: Way, address: str, pid: int, in_flight: int, seconds: float) -> Served:
    tally = Tally()
    asking = asyncio.create_task(way.ask(address, in_flight, tally))
    await asyncio.wait({asking}, timeout=WARM_SECONDS)
    first, cpu_before, began = len(tally.replies), cpu_seconds(pid), time.perf_counter()
    await asyncio.wait({asking}, timeout=seconds)
    last, cpu_after, ended = len(tally.replies), cpu_seconds(pid), time.perf_counter()
    tally.is_over = True
    await asking
    sizes = [way.check(number, reply) for number, reply in tally.replies][first:last]
    known = [size for size in sizes if size is not None]
    taken = sorted(tally.latencies[first:last])
    requests = (last - first) * way.requests_per_message
    return Served(
        requests_per_second=requests / (ended - began),
        p50_ms=statistics.median(taken) * 1e3,
        p99_ms=taken[int(0.99 * len(taken))] * 1e3,
        server_cpu_ms=(cpu_after - cpu_before) / requests * 1e3,
        batch_size=statistics.mean(known) if known else None,
    )

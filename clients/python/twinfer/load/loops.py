"""The two kinds of load: so many calls always under way (closed), or calls at their times, however the others fare (open)."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import grpc.aio

from twinfer.channel import DEFAULT_MAX_MESSAGE_BYTES, channel_options
from twinfer.errors import TwinferError
from twinfer.load.agreement import Agreement
from twinfer.load.callers import BatchCaller, Caller, StreamCaller, UnaryCaller
from twinfer.load.tally import Tally
from twinfer.v1 import ensemble_service_pb2

CALLS_PER_CONNECTION = 64
"""A server takes so many at once on a connection (128 by default, and 64 rows of a stream), and the rest waits on this side."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for, and how; times in seconds."""

    target: str
    requests: Sequence[ensemble_service_pb2.InferRequest]
    seconds: float
    warm_up_seconds: float = 0.0
    timeout: float = 30.0
    # Rows per call: one by Infer, several by BatchInfer.
    batch: int = 1
    is_streamed: bool = False
    # Of an open loop. Beyond it arrivals are not sent, and counted.
    max_in_flight: int = 512
    seed: int = 0
    # None: answers are not compared.
    agreement: Agreement | None = None

    @property
    def method(self) -> str:
        """The method that is called."""
        return "InferStream" if self.is_streamed else "Infer" if self.batch == 1 else f"BatchInfer of {self.batch} rows"


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Give the times of independent arrivals, `rate` per second on average, from 0 to `seconds`."""
    draw, at = random.Random(seed), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield at


async def run_closed(load: Load, concurrency: int, tally: Tally) -> None:
    """Keep `concurrency` calls under way; each begins when another has ended."""

    async def keep_asking(stretch: _Stretch) -> None:
        while (now := time.perf_counter()) < stretch.ends:
            await stretch.ask(now)

    async with _Stretch(load, concurrency, tally) as stretch, asyncio.TaskGroup() as tasks:
        tasks.create_task(stretch.watch())
        for _ in range(concurrency):
            tasks.create_task(keep_asking(stretch))


async def run_open(load: Load, arrivals: Iterable[float], tally: Tally) -> None:
    """Begin a call at each arrival. Latency counts from then, however late the call begins: no coordinated omission.

    Source: Gil Tene, "How NOT to Measure Latency", and wrk2.
    """
    under_way: set[asyncio.Task[None]] = set()
    async with _Stretch(load, load.max_in_flight, tally) as stretch, asyncio.TaskGroup() as tasks:
        tasks.create_task(stretch.watch())
        for arrival in arrivals:
            due = stretch.start + arrival
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(under_way) >= load.max_in_flight:
                tally.not_sent += load.batch * stretch.is_measured(due)
                continue
            call = tasks.create_task(stretch.ask(due))
            under_way.add(call)
            call.add_done_callback(under_way.discard)


class _Stretch:
    """A stretch of time under load: a warm-up and the time that counts, the connections, and the rows' turns.

    A call belongs to the tally if it was to begin in the time that counts; its end is waited for.
    """

    def __init__(self, load: Load, in_flight: int, tally: Tally) -> None:
        kind = StreamCaller if load.is_streamed else UnaryCaller if load.batch == 1 else BatchCaller
        connections = -(-in_flight // CALLS_PER_CONNECTION)
        # No retries, which would hide failures; and connections of their own, which gRPC would make one of.
        options = [*channel_options(DEFAULT_MAX_MESSAGE_BYTES, attempts=1), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(load.target, options) for _ in range(connections)]
        for channel in self._channels:
            channel.get_state(try_to_connect=True)
        self._caller: Caller = kind(self._channels, load.requests, load.timeout)
        self._load, self._tally = load, tally
        self._turns = itertools.cycle(range(len(load.requests)))
        self.start = time.perf_counter()
        self._measured_from = self.start + load.warm_up_seconds
        self.ends = self._measured_from + load.seconds

    def is_measured(self, due: float) -> bool:
        """Whether a call that is to begin at this time counts."""
        return self._measured_from <= due < self.ends

    async def ask(self, due: float) -> None:
        """Make the call that is to begin at this time, and count what becomes of its rows."""
        is_measured, tally = self.is_measured(due), self._tally
        if is_measured:
            tally.begun_late_seconds += self._load.batch * (time.perf_counter() - due)
        rows = list(itertools.islice(self._turns, self._load.batch))
        replies = await self._caller.ask(rows)
        now = time.perf_counter()
        for row, reply in zip(rows, replies, strict=True):
            if isinstance(reply, TwinferError):
                if is_measured:
                    tally.add_error(reply)
                continue
            agreement = self._load.agreement
            is_right = agreement is None or reply.degraded or agreement.holds(row, reply)
            tally.in_time += self._measured_from <= now < self.ends
            if is_measured:
                tally.add_answer(reply, now - due, is_right)

    async def watch(self) -> None:
        """Measure the time that counts, and how busy this side is meanwhile; what is interrupted has the time until then."""
        await asyncio.sleep(max(0.0, self._measured_from - time.perf_counter()))
        loop, process = time.thread_time(), time.process_time()
        self._tally.seconds = self._load.seconds
        try:
            await asyncio.sleep(max(0.0, self.ends - time.perf_counter()))
        except asyncio.CancelledError:
            self._tally.seconds = time.perf_counter() - self._measured_from
            raise
        finally:
            self._tally.loop_cpu_seconds = time.thread_time() - loop
            self._tally.cpu_seconds = time.process_time() - process

    async def __aenter__(self) -> "_Stretch":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._caller.close()
        for channel in self._channels:
            await channel.close()

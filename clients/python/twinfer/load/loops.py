"""The two kinds of load: so many calls always under way (closed), or calls at their times, however the others fare (open)."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinfer.aio import AsyncClient
from twinfer.errors import TwinferError
from twinfer.load.tally import Tally
from twinfer.results import Response
from twinfer.v1 import ensemble_service_pb2

CALLS_PER_CONNECTION = 64
"""A server takes so many at once on a connection (128 by default), and the rest waits on this side."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for, and how; times in seconds."""

    target: str
    requests: Sequence[ensemble_service_pb2.InferRequest]
    seconds: float
    warm_up_seconds: float = 0.0
    timeout: float = 30.0
    # Requests per call: one by Infer, several by BatchInfer.
    batch: int = 1
    # Of an open loop. Beyond it arrivals are not sent, and counted.
    max_in_flight: int = 512
    seed: int = 0
    # What the clients take besides, such as credentials.
    connection: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method that is called."""
        return "Infer" if self.batch == 1 else f"BatchInfer of {self.batch} requests"


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield the times of independent arrivals, `rate` per second on average, from 0 to `seconds`."""
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
    """A stretch of time under load: a warm-up and the time that counts, the connections, and the requests in turn.

    A call belongs to the tally if it was to begin in the time that counts; its end is waited for.
    """

    def __init__(self, load: Load, in_flight: int, tally: Tally) -> None:
        # No retries, which would hide failures; and connections of their own, where gRPC would make one of them.
        apart = [("grpc.use_local_subchannel_pool", 1), *load.connection.get("options", ())]
        self._clients = [
            AsyncClient(load.target, **{**load.connection, "options": apart}, timeout=load.timeout, attempts=1)
            for _ in range(-(-in_flight // CALLS_PER_CONNECTION))
        ]
        self._next_client = itertools.cycle(self._clients)
        self._next_request = itertools.cycle(load.requests)
        self._load, self._tally = load, tally
        self.start = time.perf_counter()
        self._measured_from = self.start + load.warm_up_seconds
        self.ends = self._measured_from + load.seconds

    def is_measured(self, due: float) -> bool:
        """Whether a call that is to begin at this time counts."""
        return self._measured_from <= due < self.ends

    async def ask(self, due: float) -> None:
        """Make the call that is to begin at this time, and count what becomes of its requests."""
        is_measured, tally = self.is_measured(due), self._tally
        if is_measured:
            tally.begun_late_seconds += self._load.batch * (time.perf_counter() - due)
        results = await self._results(next(self._next_client))
        now = time.perf_counter()
        for result in results:
            if isinstance(result, Response):
                tally.in_time += self._measured_from <= now < self.ends
            if is_measured:
                tally.add_result(result, now - due)

    async def _results(self, client: AsyncClient) -> Sequence[Response | TwinferError]:
        requests = list(itertools.islice(self._next_request, self._load.batch))
        try:
            if self._load.batch == 1:
                return [await client.infer(requests[0])]
            return [outcome.result for outcome in await client.infer_batch(requests)]
        except TwinferError as error:
            return [error] * len(requests)

    async def watch(self) -> None:
        """Measure the time that counts, and how busy this side is meanwhile; an interrupted stretch has the time until then."""
        await asyncio.sleep(max(0.0, self._measured_from - time.perf_counter()))
        began = time.thread_time()
        self._tally.seconds = self._load.seconds
        try:
            await asyncio.sleep(max(0.0, self.ends - time.perf_counter()))
        except asyncio.CancelledError:
            self._tally.seconds = time.perf_counter() - self._measured_from
            raise
        finally:
            self._tally.loop_cpu_seconds = time.thread_time() - began

    async def __aenter__(self) -> "_Stretch":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()

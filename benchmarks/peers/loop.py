"""Runs of the load, in the process that asks.

Messages are serialized beforehand and replies parsed afterwards, so that the figures are the server's and not this client's.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import grpc
import psutil
import uvloop

from benchmarks.peers.load import Load, Tally
from benchmarks.peers.ways import WAYS, Way

WARM_SECONDS = 0.3
PAUSE_SECONDS = 0.01
MAX_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Served:
    """What one closed loop found; latencies are of calls, and on a stream of rows."""

    rows_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms_per_row: float


@cache
def make_way(way: str, pair: str) -> Way:
    """Write the messages, once."""
    return WAYS[way](Load.make(pair))


def prepare(pair: str, ways: Sequence[str]) -> None:
    """Write all messages before anything is timed."""
    for way in ways:
        make_way(way, pair)


def ask_first(address: str, pid: int, pair: str, way: str) -> None:
    """Ask until there is an answer, and check it; raises RuntimeError where there is none in two minutes, or the server ends."""
    uvloop.run(_ask_first(address, pid, make_way(way, pair)))


async def _ask_first(address: str, pid: int, way: Way) -> None:
    ends = time.monotonic() + MAX_START_SECONDS
    while True:
        tally = Tally(enough=1)
        try:
            await way.ask(address, way.rows_per_message, tally)
        except (grpc.RpcError, OSError, asyncio.IncompleteReadError) as error:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError("it has ended before there was an answer") from error
            if time.monotonic() > ends:
                raise RuntimeError(f"no answer in {MAX_START_SECONDS:g} s") from error
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            way.check(*tally.replies[0])
            return


def run_load(address: str, pid: int, pair: str, way: str, in_flight: int, seconds: float) -> Served:
    """Keep `in_flight` rows under way for `seconds`, after a short warm-up; raises RuntimeError for a wrong answer."""
    return uvloop.run(_run_load(address, pid, make_way(way, pair), in_flight, seconds))


async def _run_load(address: str, pid: int, way: Way, in_flight: int, seconds: float) -> Served:
    tally = Tally()
    asking = asyncio.create_task(way.ask(address, in_flight, tally))
    await asyncio.wait({asking}, timeout=WARM_SECONDS)
    first, cpu_before, began = len(tally.replies), _cpu_seconds(pid), time.perf_counter()
    await asyncio.wait({asking}, timeout=seconds)
    last, cpu_after, ended = len(tally.replies), _cpu_seconds(pid), time.perf_counter()
    tally.is_over = True
    await asking
    for number, reply in tally.replies:
        way.check(number, reply)
    taken = sorted(tally.latencies[first:last])
    rows = (last - first) * way.rows_per_message
    return Served(
        rows_per_second=rows / (ended - began),
        p50_ms=statistics.median(taken) * 1e3,
        p99_ms=taken[int(0.99 * len(taken))] * 1e3,
        server_cpu_ms_per_row=(cpu_after - cpu_before) / rows * 1e3,
    )


def _cpu_seconds(pid: int) -> float:
    """Give the CPU time that a process and those that it started have used so far."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)

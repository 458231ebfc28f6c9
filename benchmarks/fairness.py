"""Whether a caller feels a greedy one: its p99 beside one that asks for ten times as much, and as one of ten equal callers.

In both cases the callers ask for as much in all, at random times (Poisson), whatever becomes of their calls. With limits, the
greedy caller asks for ten times what its `requests_per_second` allows, and all of it together is less than the server can do.
Without, it is more, and only turns and shares keep the callers apart; to compare, both also ask under one name. The model takes
20 ms a batch without work for the CPU, as on a GPU. Cases take turns; the ratio is the median of the rounds' ratios.

    python -m benchmarks.fairness --result benchmarks/results/fairness-cpu.json
"""

import asyncio
import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import typer
import uvloop

from benchmarks import harness
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import TIMEOUT_SECONDS, Unary
from benchmarks.peers.pairs import PAIRS
from twinfer import make_request
from twinfer.load.loops import poisson

PAIR, BATCHING = "slow", "max_batch_size = 8"
EQUAL = [f"equal-{number}" for number in range(10)]
OTHER, GREEDY, LIMITED = "other", "greedy", "limited"
FACTOR = 10
"""How many times as much as the other caller the greedy one asks for."""
MOST = 1.5
"""How many times its p99 among equals the other caller's may be."""
IN_FLIGHT = 64
LOADS = {"limits": 0.8, "turns alone": 1.5}
"""By what keeps the callers apart: how much is asked for in all, as a part of what the server can do."""
RELOAD_SECONDS = 2.5
"""By then the server has seen that its file has changed."""
COLUMNS: Columns = {
    "kept_apart_by": ("kept apart by", ""), "case": ("callers", ""), "asked": ("asked for, requests/s", ".0f"),
    "answered": ("of the caller answered", ".1%"), "p50_ms": ("its p50 ms", ".1f"), "p99_ms": ("p99 ms", ".1f"),
    "ratio": ("p99 / among equals", ".2f"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asking:
    """A caller that asks for so many requests a second."""

    name: str
    rate: float
    is_watched: bool = True
    """Whether its latencies count."""


@dataclass(slots=True)
class Tally:
    """What became of the calls that count."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0

    def percentile(self, part: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        taken = sorted(self.latencies)
        return taken[int(part * len(taken))] * 1e3

    @property
    def answered(self) -> float:
        """The part of the calls that were answered."""
        return len(self.latencies) / max(1, len(self.latencies) + self.refused)


def show(name: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that show a caller's token, which is as good as its name here."""
    return (("authorization", f"Bearer {name}"),)


def write_callers(file: Path, limit: float) -> None:
    """Write the server's file: only one caller has a limit, of so many requests per second."""
    lines = []
    for name in (*EQUAL, OTHER, GREEDY, LIMITED):
        lines += [f"[callers.{name}]", 'role = "infer"', f'token = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"']
        lines += [f"requests_per_second = {limit}"] if name == LIMITED else []
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_cases(kept_apart_by: str, capacity: float) -> dict[str, list[Asking]]:
    """Return who asks for how much, case by case."""
    asked = LOADS[kept_apart_by] * capacity
    share = asked / (FACTOR + 1)
    equal = [Asking(name, asked / len(EQUAL)) for name in EQUAL]
    if kept_apart_by == "limits":
        return {"ten equal": equal, "one greedy": [Asking(OTHER, share), Asking(LIMITED, FACTOR * share, is_watched=False)]}
    greedy = Asking(GREEDY, FACTOR * share, is_watched=False)
    return {
        "ten equal": equal,
        "one greedy": [Asking(OTHER, share), greedy],
        "one greedy, under one name": [Asking(GREEDY, share), greedy],
    }


def run(address: str, callers: Sequence[Asking], message: bytes, seconds: float, seed: int) -> Tally:
    """Have callers ask for so long; returns what became of the calls of those that are watched."""
    return uvloop.run(_run(address, callers, message, seconds, seed))


async def _run(address: str, callers: Sequence[Asking], message: bytes, seconds: float, seed: int) -> Tally:
    tally = Tally()
    await asyncio.gather(*(_ask(address, caller, message, seconds, seed + n, tally) for n, caller in enumerate(callers)))
    return tally


async def _ask(address: str, caller: Asking, message: bytes, seconds: float, seed: int, tally: Tally) -> None:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    async with grpc.aio.insecure_channel(address, options) as channel, asyncio.TaskGroup() as calls:
        method: Any = channel.unary_unary(Unary.method)
        metadata, began = show(caller.name), time.perf_counter()

        async def call(due: float) -> None:
            try:
                await method(message, timeout=TIMEOUT_SECONDS, metadata=metadata)
            except grpc.RpcError:
                tally.refused += caller.is_watched
            else:
                if caller.is_watched:
                    tally.latencies.append(time.perf_counter() - due)

        for arrival in poisson(caller.rate, seconds, seed):
            await asyncio.sleep(max(0.0, began + arrival - time.perf_counter()))
            calls.create_task(call(began + arrival))


def measure_capacity(address: str, message: bytes, seconds: float) -> float:
    """Return how many requests per second the server answers."""
    return uvloop.run(_measure_capacity(address, message, seconds))


async def _measure_capacity(address: str, message: bytes, seconds: float) -> float:
    answered, ends = 0, time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(Unary.method)

        async def keep_asking() -> None:
            nonlocal answered
            while time.perf_counter() < ends:
                await method(message, timeout=TIMEOUT_SECONDS, metadata=show(OTHER))
                answered += 1

        await asyncio.gather(*(keep_asking() for _ in range(IN_FLIGHT)))
    return answered / seconds


def summarize(kept_apart_by: str, cases: Mapping[str, Sequence[Asking]], found: Mapping[str, Sequence[Tally]]) -> list[Figure]:
    """Return the medians of the rounds, and each case's p99 beside that among equals."""
    among_equals = [tally.percentile(0.99) for tally in found["ten equal"]]
    return [
        {
            "kept_apart_by": kept_apart_by,
            "case": case,
            "asked": round(sum(caller.rate for caller in cases[case]), 1),
            "answered": statistics.median(tally.answered for tally in tallies),
            "p50_ms": round(statistics.median(tally.percentile(0.5) for tally in tallies), 2),
            "p99_ms": round(statistics.median(tally.percentile(0.99) for tally in tallies), 2),
            "ratio": round(harness.paired([tally.percentile(0.99) for tally in tallies], among_equals), 3),
        }
        for case, tallies in found.items()
    ]


def main(result: Result = None, seconds: Seconds = 20.0, rounds: Rounds = 3, pinned: Pinned = None) -> None:
    """Compare a caller's latencies beside a greedy one with those among equals."""
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    pair, figures = PAIRS[PAIR], list[Figure]()
    message = make_request(pair.requests(1)[0]).SerializeToString()
    with tempfile.TemporaryDirectory() as root, harness.worker(cores.load) as loader:
        folder, file = pair.write(Path(root) / "ensemble", batching=BATCHING), Path(root) / "callers.toml"
        write_callers(file, limit=1.0)
        with harness.serving(folder, cores.server, ("--trust-code", "--set", f"auth_file={file}")) as (address, _):
            capacity = loader.submit(measure_capacity, address, message, min(seconds, 5.0)).result()
            for kept_apart_by in LOADS:
                cases = find_cases(kept_apart_by, capacity)
                write_callers(file, limit=LOADS["limits"] * capacity / (FACTOR + 1))
                time.sleep(RELOAD_SECONDS)
                found: dict[str, list[Tally]] = {case: [] for case in cases}
                for number in range(rounds):
                    for case, callers in cases.items():
                        found[case].append(loader.submit(run, address, callers, message, seconds, 100 * number).result())
                figures += summarize(kept_apart_by, cases, found)
    ratios = {str(each["kept_apart_by"]): each["ratio"] for each in figures if each["case"] == "one greedy"}
    setup = {
        "pair": PAIR, "batching": BATCHING, "rounds": rounds, "seconds": seconds, "cores": str(cores), "ratios": ratios,
        "most": MOST,
    }  # fmt: skip
    harness.report("benchmarks.fairness", machine, setup, figures, [harness.tabulate(figures, COLUMNS)], result)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio}, where {MOST} is allowed")


if __name__ == "__main__":
    typer.run(main)

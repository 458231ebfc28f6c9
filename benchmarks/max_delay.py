"""Which `batching.max_delay_ms` should be the default: every delay for three pairs of models, from a lone caller to 32, in one run.

Each pair is served once for each delay, all at the same time; runs take turns. The default is to be the smallest delay that keeps
95 % of the best requests/s at 32 callers, without a p50 at 2 callers above 1.1 times that of no delay, over all three pairs: models
that do nothing, the small CNN and transformer, and members that take 20 ms for a batch of any size, as on a GPU.

    python -m benchmarks.max_delay --result benchmarks/results/max-delay-cpu.json
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import harness
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import Served, median_of, run_loop
from benchmarks.peers.contenders import CONTENDERS, TWINFER, answering
from benchmarks.peers.pairs import PAIRS
from benchmarks.peers.ways import make_way, prepare

WAY = "Infer"
FEW, MANY = 2, 32
LEAST_RATE, MOST_LATENCY = 0.95, 1.1
COLUMNS: Columns = {
    "pair": ("pair", ""), "callers": ("callers", "d"), "max_delay_ms": ("max_delay_ms", "g"),
    "requests_per_second": ("requests/s", ",.0f"), "p50_ms": ("p50 ms", ".2f"), "p99_ms": ("p99 ms", ".2f"),
    "server_cpu_ms": ("server CPU ms a request", ".3f"), "batch_size": ("requests a batch", ".1f"),
}  # fmt: skip
DELAY_COLUMNS: Columns = {
    "max_delay_ms": ("max_delay_ms", "g"), "rate": (f"least requests/s at {MANY} / the best", ".3f"),
    "latency": (f"most p50 at {FEW} / without delay", ".3f"), "will_do": ("will do", ""),
}  # fmt: skip
Key = tuple[str, int, float]
"""Pair, callers, delay in milliseconds."""


def judge(medians: Mapping[Key, Served], pairs: Sequence[str], delays: Sequence[float]) -> list[Figure]:
    """Say of every delay whether it will do, by the pair for which it does worst."""
    figures: list[Figure] = []
    for delay in delays:
        rates, latencies = [], []
        for pair in pairs:
            best = max(medians[pair, MANY, each].requests_per_second for each in delays)
            rates.append(medians[pair, MANY, delay].requests_per_second / best)
            latencies.append(medians[pair, FEW, delay].p50_ms / medians[pair, FEW, min(delays)].p50_ms)
        will_do = min(rates) >= LEAST_RATE and max(latencies) <= MOST_LATENCY
        figures.append({
            "max_delay_ms": delay, "rate": round(min(rates), 4), "latency": round(max(latencies), 4),
            "will_do": "yes" if will_do else "no",
        })  # fmt: skip
    return figures


def main(
    result: Result = None,
    seconds: Seconds = 2.0,
    rounds: Rounds = 5,
    delays: Annotated[
        str, typer.Option(help="In milliseconds, by comma; the smallest is what others are compared with.")
    ] = "0,0.5,1,2,4",
    callers: Annotated[str, typer.Option(help=f"By comma; {FEW} and {MANY} are always among them.")] = "1,2,8,32",
    pairs: Annotated[str, typer.Option(help="By comma.")] = "noop,small,slow",
    pinned: Pinned = None,
) -> None:
    """Sweep the delay."""
    milliseconds, names = [float(each) for each in delays.split(",")], pairs.split(",")
    levels = sorted({FEW, MANY, *map(int, callers.split(","))})
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    [contender] = (each for each in CONTENDERS if each.name == TWINFER)
    runs: dict[Key, list[Served]] = {}
    with tempfile.TemporaryDirectory() as root, harness.worker(cores.load) as loader:
        harness.pin(cores.load)
        for pair in names:
            loader.submit(prepare, pair, [WAY]).result()
            make = partial(make_way, WAY, pair)
            with ExitStack() as stack:
                servers = {}
                for delay in milliseconds:
                    folder = PAIRS[pair].write(Path(root) / f"{pair}-{delay}", batching=f"max_delay_ms = {delay}")
                    servers[delay] = stack.enter_context(answering(contender, pair, folder, cores.server, loader, make))
                for _ in range(rounds):
                    for level in levels:
                        for delay, server in servers.items():
                            served = loader.submit(run_loop, make, server.address, server.pid, level, seconds).result()
                            runs.setdefault((pair, level, delay), []).append(served)
    medians = {key: median_of(found) for key, found in runs.items()}
    figures: list[Figure] = [
        {"pair": pair, "callers": level, "max_delay_ms": delay, **asdict(served)}
        for (pair, level, delay), served in medians.items()
    ]
    verdicts = judge(medians, names, milliseconds)
    tables = [harness.tabulate(verdicts, DELAY_COLUMNS), harness.tabulate(figures, COLUMNS)]
    smallest = next((each["max_delay_ms"] for each in verdicts if each["will_do"] == "yes"), None)
    setup: dict[str, object] = {
        "rounds": rounds,
        "seconds": seconds,
        "cores": str(cores),
        "verdicts": verdicts,
        "smallest": smallest,
    }
    harness.report("benchmarks.max_delay", machine, setup, figures, tables, result)
    print("None of them will do." if smallest is None else f"The smallest that will do: {smallest:g} ms.")


if __name__ == "__main__":
    typer.run(main)

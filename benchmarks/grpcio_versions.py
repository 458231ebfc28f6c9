"""Whether another grpcio would do better: the server's CPU time for a call that does nothing, with 32 in flight.

The installed version is measured with gRPC's experiment `event_engine_listener` on and off, and versions that are named in
environments of their own, which are made under build/grpcio. Runs are interleaved, the load has a core of its own.

    python -m benchmarks.grpcio_versions 1.82.0 1.85.1 --result build/grpcio.json
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import harness
from benchmarks.bare import REPLY
from benchmarks.harness import ROOT, Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import Served, Unary, median_of, run_loop
from benchmarks.peers.contenders import Contender, Running, answering

ENVIRONMENTS = ROOT / "build" / "grpcio"
MESSAGE_BYTES = 100
SWITCHES = {"on": "event_engine_listener", "off": "-event_engine_listener"}
COLUMNS: Columns = {
    "version": ("grpcio", ""), "listener": ("event_engine_listener", ""), "server_cpu_ms": ("server CPU ms a call", ".4f"),
    "requests_per_second": ("calls/s", ",.0f"), "p50_ms": ("p50 ms", ".2f"), "ratio": ("CPU / the best", ".2f"),
}  # fmt: skip


class Blank(Unary):
    """Calls with a hundred bytes that say nothing."""

    messages: Sequence[bytes] = (bytes(MESSAGE_BYTES),)

    def check(self, number: int, reply: bytes) -> int | None:
        if reply != REPLY:
            raise RuntimeError(f"found a reply of {len(reply)} bytes; right: {len(REPLY)}")
        return None


def make_environment(wanted: str) -> Path:
    """Make an environment with this grpcio, unless it is there; return its interpreter."""
    folder = ENVIRONMENTS / wanted
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*install, f"grpcio=={wanted}", f"uvloop=={version('uvloop')}"], check=True)
        (folder / ".made").touch()
    return python


def main(
    versions: Annotated[list[str] | None, typer.Argument(help="Other versions of grpcio.")] = None,
    result: Result = None,
    seconds: Seconds = 1.0,
    rounds: Rounds = 5,
    in_flight: Annotated[int, typer.Option(min=1, help="Calls in flight.")] = 32,
    pinned: Pinned = None,
) -> None:
    """Measure versions of grpcio."""
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    pythons = {version("grpcio"): Path(sys.executable)} | {each: make_environment(each) for each in versions or ()}
    runs: dict[tuple[str, str], list[Served]] = {}
    with ExitStack() as stack, harness.worker(cores.load) as loader:
        servers: dict[tuple[str, str], Running] = {}
        for name, python in pythons.items():
            for switch, experiment in SWITCHES.items():
                variables = {"GRPC_EXPERIMENTS": experiment}
                contender = Contender(f"{name} {switch}", (), ("benchmarks/bare.py", "{port}"), python, variables=variables)
                servers[name, switch] = stack.enter_context(answering(contender, "", ROOT, cores.server, loader, Blank))
        harness.pin(cores.load)
        for _ in range(rounds):
            for key, server in servers.items():
                served = loader.submit(run_loop, Blank, server.address, server.pid, in_flight, seconds).result()
                runs.setdefault(key, []).append(served)
    medians = {key: median_of(found) for key, found in runs.items()}
    best = min(each.server_cpu_ms for each in medians.values())
    figures: list[Figure] = [
        {
            "version": name, "listener": switch, "server_cpu_ms": round(each.server_cpu_ms, 4),
            "requests_per_second": round(each.requests_per_second, 1), "p50_ms": round(each.p50_ms, 3),
            "ratio": round(each.server_cpu_ms / best, 3),
        }
        for (name, switch), each in medians.items()
    ]  # fmt: skip
    rows = harness.tabulate(figures, COLUMNS)
    setup: dict[str, object] = {"in_flight": in_flight, "rounds": rounds, "seconds": seconds, "cores": str(cores)}
    harness.report("benchmarks.grpcio_versions", machine, setup, figures, [rows], result)


if __name__ == "__main__":
    typer.run(main)

"""What TLS and tokens cost: the small pair served without and with them, in turns, asked by many callers and by a lone one.

    python -m benchmarks.security --result benchmarks/results/security-cpu.json

The mark: TLS and tokens together cost at most 10 % of the requests/s.
"""

import hashlib
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import grpc
import typer

from benchmarks import harness
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import Served, ask_first, median_of, run_loop
from benchmarks.peers.pairs import PAIRS
from benchmarks.peers.ways import Infer, prepare
from twinfer import tls_credentials

PAIR = "small"
PLAIN = "plain text"
LEVELS = (32, 1)
"""Requests in flight: the first for requests/s, the last for the latency of a lone call."""
LEAST_RATE = 0.9
COLUMNS: Columns = {
    "security": ("security", ""), "in_flight": ("in flight", "d"), "requests_per_second": ("requests/s", ",.0f"),
    "rate": ("/ plain text, median of the rounds", ".3f"), "p50_ms": ("p50 ms", ".2f"), "p99_ms": ("p99 ms", ".2f"),
    "server_cpu_ms": ("server CPU ms a request", ".3f"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Security:
    """How a server is served, and what its callers send."""

    name: str
    arguments: tuple[str, ...] = ()
    ca: Path | None = None
    client: tuple[Path, Path] | None = None
    metadata: tuple[tuple[str, str], ...] = ()


class SecureInfer(Infer):
    """Calls of `Infer` as one of the servers wants them."""

    def __init__(self, security: Security) -> None:
        """Make the requests."""
        super().__init__(PAIR)
        self.security, self.metadata = security, security.metadata

    def connect(self, address: str) -> grpc.aio.Channel:
        """Open a channel, by TLS if there is an authority."""
        if self.security.ca is None:
            return super().connect(address)
        return grpc.aio.secure_channel(address, tls_credentials(self.security.ca, *(self.security.client or ())))


@cache
def make_way(security: Security) -> SecureInfer:
    """Write the messages, once a process."""
    return SecureInfer(security)


def make_ways(folder: Path) -> Sequence[Security]:
    """Make certificates and a caller's token in a folder, and return the ways to serve, the one without any first."""
    subprocess.run(["sh", harness.ROOT / "deploy" / "certificates.sh", folder], check=True, capture_output=True)
    tls = ("--tls-cert", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key")
    ca, client = folder / "ca.pem", (folder / "client.pem", folder / "client.key")
    token, file = secrets.token_urlsafe(32), folder / "callers.toml"
    file.write_text(f'[callers.load]\nrole = "infer"\ntoken = "sha256:{hashlib.sha256(token.encode()).hexdigest()}"\n')
    callers, metadata = ("--set", f"auth_file={file}"), (("authorization", f"Bearer {token}"),)
    return (
        Security(PLAIN),
        Security("TLS", tls, ca),
        Security("TLS, clients with certificates", (*tls, "--tls-client-ca", str(ca)), ca, client),
        Security("TLS and tokens", (*tls, *callers), ca, metadata=metadata),
    )


def tabulate(ways: Sequence[Security], runs: dict[tuple[str, int], list[Served]]) -> list[Figure]:
    """Return the medians of each way at each level, with its requests/s over those in the clear, round by round."""
    figures: list[Figure] = []
    for level in LEVELS:
        plain = [run.requests_per_second for run in runs[PLAIN, level]]
        for way in ways:
            found = runs[way.name, level]
            rate = harness.paired([run.requests_per_second for run in found], plain)
            figures.append({"security": way.name, "in_flight": level, "rate": round(rate, 4), **asdict(median_of(found))})
    return figures


def main(result: Result = None, seconds: Seconds = 2.0, rounds: Rounds = 5, pinned: Pinned = None) -> None:
    """Serve the pair in each way at the same time, and ask them in turns."""
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    runs: dict[tuple[str, int], list[Served]] = {}
    with tempfile.TemporaryDirectory() as root, harness.worker(cores.load) as loader, ExitStack() as stack:
        harness.pin(cores.load)
        loader.submit(prepare, PAIR, ["Infer"]).result()
        folder, ways = PAIRS[PAIR].write(Path(root) / PAIR), make_ways(Path(root) / "certificates")
        servers = {}
        for way in ways:
            servers[way] = stack.enter_context(harness.serving(folder, cores.server, ("--trust-code", *way.arguments)))
            loader.submit(ask_first, partial(make_way, way), *servers[way]).result()
        for _ in range(rounds):
            for level in LEVELS:
                for way, (address, pid) in servers.items():
                    served = loader.submit(run_loop, partial(make_way, way), address, pid, level, seconds).result()
                    runs.setdefault((way.name, level), []).append(served)
    figures = tabulate(ways, runs)
    setup: dict[str, object] = {"pair": PAIR, "rounds": rounds, "seconds": seconds, "cores": str(cores)}
    harness.report("benchmarks.security", machine, setup, figures, [harness.tabulate(figures, COLUMNS)], result)
    worst = min(figure["rate"] for figure in figures if figure["in_flight"] == LEVELS[0])  # type: ignore[type-var]
    print(f"The least of the requests/s at {LEVELS[0]} in flight is {worst:.3f} of those in plain text; the mark is {LEAST_RATE}.")


if __name__ == "__main__":
    typer.run(main)

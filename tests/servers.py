"""Real servers for tests: the whole service in this process, on a free port, on an event loop of its own."""

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from twinfer_server.serve import serve
from twinfer_server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "ensembles" / "digits"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
DEFAULTS: dict[str, Any] = {"listen": "127.0.0.1:0", "reply_slack_seconds": 0.25}
"""The slack is wide because a busy machine may take as long to bring a degraded answer to its caller."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready; `stop` begins its drain and returns at once, `ended` is set when its life is over."""

    address: str
    admin_address: str
    metrics_address: str
    health_address: str
    stop: "threading.Event"
    ended: threading.Event


@contextmanager
def running(folder: Path, on_listening: Callable[[str], None] | None = None, **settings: Any) -> Iterator[RunningServer]:
    """Serve `folder` in this process, so that a test can hold its models' gates; drain and end it afterwards.

    It is ready when the body begins; `on_listening` is told its address before that.
    """
    ready, ended, stop = threading.Event(), threading.Event(), threading.Event()
    addresses = {"listening": "", "operators": "", "metrics": "", "health": ""}
    failures: list[BaseException] = []

    def say(line: str) -> None:
        name, _, address = line.partition(" on ")
        if name in addresses:
            addresses[name] = address
        if name == "listening" and on_listening:
            on_listening(address)
        if line == "ready":
            ready.set()

    async def life() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=lambda: (stop.wait(), loop.call_soon_threadsafe(stopping.set)), daemon=True).start()
        await serve(folder, ServerSettings(**(DEFAULTS | settings)), stopping, say, lambda done, total: None)

    def run() -> None:
        try:
            asyncio.run(life())
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()
            ready.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    try:
        listening, operators, metrics, health = addresses.values()
        yield RunningServer(listening, operators, metrics, health, stop, ended)
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def scrape(server: RunningServer) -> Samples:
    """Read a server's metrics."""
    return read_metrics(server.metrics_address)


def read_metrics(address: str) -> Samples:
    """Read the metrics at HOST:PORT, as Prometheus does."""
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def count(samples: Samples, name: str, **labels: str) -> float:
    """Return a sample's value, 0 where there is none."""
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def write_ensemble(folder: Path, toml: str, files: Mapping[str, str] | None = None) -> Path:
    """Write an ensemble folder: its `ensemble.toml`, and further text files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ensemble.toml").write_text(dedent(toml), encoding="utf-8")
    for name, content in (files or {}).items():
        (folder / name).write_text(dedent(content), encoding="utf-8")
    return folder

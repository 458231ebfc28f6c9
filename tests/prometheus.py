"""Prometheus itself (Debian's package has it and promtool), reading a server's metrics with the configuration of deploy/."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.calls import PATIENCE_SECONDS
from tests.servers import ROOT

DEPLOY = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "twinfer.json"
SCRAPE_SECONDS = 0.5

T = TypeVar("T")


def missing() -> str:
    """Say why there is no Prometheus here; "" where there is."""
    return (
        "" if shutil.which("prometheus") and shutil.which("promtool") else "prometheus is not installed: apt-get install prometheus"
    )


class Prometheus:
    """A Prometheus that is being asked."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: object) -> Any:
        """Ask for something; raises OSError until it listens."""
        with urllib.request.urlopen(f"http://{self._address}{path}?{urllib.parse.urlencode(parameters)}") as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """Return the series that an expression has now, each with its labels and value."""
        return [(each["metric"], float(each["value"][1])) for each in self.get("/api/v1/query", query=expression)["result"]]


def wait_until(find: Callable[[], T]) -> T:
    """Return what `find` finds, once that is something."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if found := find():
                return found
        except OSError as error:  # it does not listen yet, or has not read what it wrote
            if isinstance(error, urllib.error.HTTPError) and error.code != 503:
                raise
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


@contextmanager
def scraping(metrics_address: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of deploy/, but that it reads from `metrics_address` and more often."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_SECONDS * 1000:.0f}ms")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [metrics_address]
    shutil.copy(DEPLOY / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            prometheus = Prometheus(address)
            wait_until(lambda: prometheus.query('up{job="twinfer"} == 1'))
            yield prometheus
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the dashboard: the title of its row, its own, its unit, and each query with its legend."""

    row: str
    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def read_panels() -> Iterator[Panel]:
    """Return the dashboard's panels."""
    row = ""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            queries = tuple((target["expr"], target["legendFormat"]) for target in panel["targets"])
            yield Panel(row, panel["title"], panel["fieldConfig"]["defaults"]["unit"], queries)


def fill_in(expression: str, interval: str = "1m") -> str:
    """Write a dashboard's query as Grafana sends it, for every server."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", interval)

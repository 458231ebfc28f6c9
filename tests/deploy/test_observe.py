"""The alert rules and the dashboard ask for what a loaded server has, by Prometheus's own judgement where it is installed."""

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.calls import INFER, disable_member
from tests.failing import FAILING, make_failing, write_failing
from tests.prometheus import DEPLOY, Prometheus, fill_in, missing, read_panels, scraping, wait_until
from tests.servers import RunningServer, running, scrape
from twinfer.v1 import ensemble_service_pb2 as pb

ON_A_GPU = {"twinfer_device_memory_bytes", "twinfer_device_utilization_ratio"}
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [query for panel in read_panels() for query, _ in panel.queries]
needs_prometheus = pytest.mark.skipif(bool(missing()), reason=missing())


def load(address: str) -> None:
    """Ask what is answered whole, what is degraded, and what fails."""
    with grpc.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary(INFER)
        for request in (make_failing(), make_failing(), make_failing(FAILING)):
            ask(request.SerializeToString())
        for bad in (pb.InferRequest(), make_failing(FAILING, policy=pb.POLICY_REQUIRE_ALL)):
            with pytest.raises(grpc.RpcError):
                ask(bad.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = write_failing(tmp_path_factory.mktemp("failing"))
    with running(folder, trust_code=True, metrics_listen="127.0.0.1:0", admin_listen="127.0.0.1:0") as started:
        load(started.address)
        yield started


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:twinfer|rpc|process)_\w+(?=[{ )\[]|$)", re.sub(r"by \([^)]*\)", "", expression)))


def test_every_metric_of_rules_and_dashboard_exists_on_a_loaded_server(server: RunningServer) -> None:
    used = set().union(*map(names_in, [*QUERIES, *(rule["expr"] for rule in RULES)]))
    assert len(used) > 30
    assert used - {name for name, _ in scrape(server)} == ON_A_GPU


def test_the_dashboard_has_a_row_for_each_part() -> None:
    assert [*dict.fromkeys(panel.row for panel in read_panels())] == [
        "Callers",
        "Members",
        "Overlap",
        "Fusion",
        "Device and process",
    ]


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.fixture(scope="module")
def prometheus(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with scraping(server.metrics_address, tmp_path_factory.mktemp("prometheus")) as started:
        load(server.address)
        wait_until(lambda: started.query("rate(twinfer_requests_total[1m]) > 0"))
        yield started


@needs_prometheus
def test_prometheus_has_an_answer_to_every_query_of_the_dashboard(prometheus: Prometheus) -> None:
    silent = {query for query in QUERIES if not prometheus.query(fill_in(query))}
    assert {name for query in silent for name in names_in(query)} == ON_A_GPU


@needs_prometheus
def test_prometheus_fires_for_a_member_that_is_off(server: RunningServer, prometheus: Prometheus) -> None:
    disable_member(server.admin_address, "other")
    pending = wait_until(lambda: prometheus.query('ALERTS{alertname="TwinferMemberDisabled"}'))
    assert [labels["member"] for labels, _ in pending] == ["other"]


@needs_prometheus
def test_promtool_has_nothing_against_the_metrics(server: RunningServer, tmp_path: Path) -> None:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as reply:
        done = subprocess.run(["promtool", "check", "metrics"], input=reply.read(), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")

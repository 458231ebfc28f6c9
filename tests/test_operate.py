"""`twinfer fusion` and `twinfer member`, against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.models import Opinion, write_members
from tests.servers import RunningServer, running
from twinfer.cli.app import app


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    write_members(tmp_path, {"left": Opinion(), "right": Opinion()})
    with running(tmp_path, trust_code=True, admin_listen="127.0.0.1:0") as found:
        yield found


def operate(server: RunningServer, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--server", server.admin_address])


def test_the_fusion_is_changed_and_put_back(server: RunningServer) -> None:
    weights = operate(server, "fusion", "update", "--weight", "left=3", "--weight", "right=1", "--temperature", "left=2")
    assert weights.stdout == (
        "fusion weighted_mean version 2; weights left 0.750, right 0.250; temperatures left 2.000, right 1.000\n"
    )
    method = json.loads(operate(server, "fusion", "update", "--method", "maximum", "--expected-version", "2", "--json").stdout)
    assert (method["method"], method["version"], method["weights"]) == ("maximum", 3, {})
    assert operate(server, "fusion", "rollback", "--version", "1").stdout.startswith("fusion weighted_mean version 1; ")


def test_a_change_that_the_server_refuses_ends_with_1_and_the_reason(server: RunningServer) -> None:
    result = operate(server, "fusion", "update", "--weight", "third=1")
    assert result.exit_code == 1
    assert "third" in result.stderr
    late = operate(server, "fusion", "update", "--weight", "left=1", "--expected-version", "9", "--json")
    assert json.loads(late.stdout)["error"]["reason"] == "FUSION_VERSION"


@pytest.mark.parametrize(
    ("numbers", "said"), [(["left=much"], "'left=much' is not MEMBER=NUMBER"), (["left=1", "left=2"], "'left' is given twice")]
)
def test_what_is_no_number_or_a_second_one_never_leaves(server: RunningServer, numbers: list[str], said: str) -> None:
    result = operate(server, "fusion", "update", *(argument for number in numbers for argument in ("--weight", number)))
    assert result.exit_code == 2
    assert said in result.stderr


def test_whoever_may_call_may_see_the_fusion(server: RunningServer) -> None:
    operate(server, "fusion", "update", "--weight", "left=3", "--weight", "right=1")
    shown = [CliRunner().invoke(app, ["fusion", "show", "--server", server.address, *options]) for options in ([], ["--json"])]
    assert shown[0].stdout.startswith("fusion weighted_mean version 2; weights left 0.750, right 0.250; ")
    assert json.loads(shown[1].stdout)["weights"] == {"left": 0.75, "right": 0.25}


def test_a_member_is_disabled_and_closed_again(server: RunningServer) -> None:
    assert operate(server, "member", "off", "left").stdout.startswith("left is DISABLED, since ")
    described = json.loads(operate(server, "member", "on", "left", "--json").stdout)
    assert (described["name"], described["breaker_state"]) == ("left", "CLOSED")
    assert operate(server, "member", "off", "third").exit_code == 1

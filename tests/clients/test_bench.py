"""`twinfer bench` as people call it: what it asks for, prints, writes down and exits with."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.calls import PATIENCE_SECONDS
from tests.conftest import DigitsServer
from tests.scripted import ANSWER, Context, ScriptedService, serving
from tests.servers import DIGITS
from tests.without import without
from twinfer.cli import app
from twinfer.v1 import ensemble_service_pb2 as pb

QUICK = ("--seconds", "0.2", "--warm-up", "0")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(ScriptedService()) as found:
        yield found


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "100", "NO_COLOR": "1"})


def points(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["points"]
    return found


@pytest.mark.parametrize("way", [[], ["--batch", "4"]], ids=["Infer", "BatchInfer"])
def test_without_inputs_it_asks_random_rows_in_a_sweep(address: str, tmp_path: Path, way: list[str]) -> None:
    sweep = ["--concurrency", "1,3", "--rate", "40", "--json", str(tmp_path / "figures.json")]
    result = bench(address, *QUICK, *sweep, *way)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "64 random rows, images of 224 x 224" in lines[0]
    loads = [load for line in lines for load in ("1 call", "3 calls", "40/s") if line.startswith(f"{load} ")]
    assert loads == ["1 call", "3 calls", "40/s"] * 2
    found = [(point.get("concurrency"), point.get("rate")) for point in points(tmp_path / "figures.json")]
    assert found == [(1, None), (3, None), (None, 40)]


def test_the_figures_are_written_down_with_what_they_were_measured_with(address: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = bench(address, *QUICK, "--input", "text=three", "--concurrency", "2", "--json", str(file))
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    assert written["title"] == f"digits version 3 at {address}: Infer, one request"
    assert written["load"] == {
        "target": address, "method": "Infer", "requests": 1, "seconds": 0.2, "warm_up_seconds": 0.0, "timeout": 30.0, "batch": 1,
        "max_in_flight": 512, "seed": 0,
    }  # fmt: skip
    assert {"python", "twinfer", "grpcio"} <= written["client"]["versions"].keys()
    [point] = written["points"]
    assert (point["seconds"], point["is_complete"]) == (0.2, True)
    assert point["requests_per_second"] > 0.0
    assert list(point["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max"]
    assert list(point["latency_ms"].values()) == sorted(point["latency_ms"].values())
    assert (point["failed"], point["errors"], point["not_sent"]) == (0, {}, 0)
    assert point["degraded"] == point["answered"]
    assert (point["batch_size"], point["server_ms"]["total"]) == (4.0, 2.0)
    assert 0.0 < point["client_loop_share"] < 2.0


def test_rows_of_a_folder_are_sent_to_a_real_server_in_turn(digits_server: DigitsServer) -> None:
    result = bench(digits_server.address, *QUICK, "--data", str(DIGITS / "heldout"), "--concurrency", "2")
    assert result.exit_code == 0, result.output
    assert "Infer, 599 rows of" in result.stdout


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_is_said_with_its_reason_and_exits_with_1_unless_put_up_with(address: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nthree\nbad\n")
    with_a_bad_row = ["--data", str(tmp_path), "--concurrency", "1"]
    result = bench(address, *QUICK, *with_a_bad_row, "--json", str(tmp_path / "figures.json"))
    assert result.exit_code == 1
    [point] = points(tmp_path / "figures.json")
    assert point["errors"].keys() == point["error_examples"].keys() == {"INVALID_INPUT"}
    assert abs(point["failed"] - point["answered"]) <= 1
    assert f"1 call: INVALID_INPUT, {point['failed']:,} times, such as: inputs['text']" in result.stderr
    assert bench(address, *QUICK, *with_a_bad_row, "--no-fail-on-errors").exit_code == 0


def test_what_fails_without_any_load_is_said_at_once(address: str, refused_address: str) -> None:
    refused, unreachable = bench(address, "--text", "bad"), bench(refused_address, "--timeout", "200ms")
    assert [(result.exit_code, result.stdout) for result in (refused, unreachable)] == [(1, "")] * 2
    assert refused.stderr.startswith("INVALID_ARGUMENT (INVALID_INPUT)")


def test_an_interrupt_prints_what_was_measured_so_far(tmp_path: Path) -> None:
    is_held, gate = threading.Event(), threading.Event()

    def hold(request: pb.InferRequest, context: Context) -> pb.InferResponse:
        if len(service.requests) == 3:  # the first is asked without load, the second is answered
            is_held.set()
            gate.wait(PATIENCE_SECONDS)
        return ANSWER

    service = ScriptedService(hold)
    file = tmp_path / "figures.json"
    with serving(service) as address:
        arguments = ["bench", address, "--text", "three", "--warm-up", "0", "--concurrency", "1,2", "--json", str(file)]
        command = [sys.executable, "-c", "from twinfer.cli import main; main()", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert is_held.wait(PATIENCE_SECONDS)
            process.send_signal(signal.SIGINT)
            said, warned = process.communicate(timeout=PATIENCE_SECONDS)
        gate.set()
    assert process.returncode == 130
    assert "1 call" in said
    assert "2 calls" not in said
    assert warned.endswith("1 call: interrupted\n")
    assert "Traceback" not in warned
    [point] = points(file)
    assert (point["answered"], point["failed"], point["is_complete"]) == (1, 0, False)
    assert 0.0 < point["seconds"] < 10.0


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", "1,two"], "'1,two'; allowed: whole numbers above 0 with commas between"),
        (["--concurrency", "1.5"], "whole numbers above 0"),
        (["--concurrency", ""], "whole numbers above 0"),
        (["--rate", "0"], "'0'; allowed: numbers above 0"),
        (["--rate", "inf"], "numbers above 0"),
        (["--json", "absent/figures.json"], "there is no such folder"),
        (["--text", "three", "--data", "."], "inputs are given, and --data too"),
        (["--data", "absent.csv"], "absent.csv"),
        (["--input", "three"], "is not NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(address: str, arguments: list[str], said: str) -> None:
    result = bench(address, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("name", ["numpy", "PIL"])
def test_without_a_module_of_its_extra_it_says_how_to_install_that(name: str) -> None:
    done = without({name}, "bench")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"twinfer bench needs {name}, which is not installed. Install it:\n  pip install 'twinfer[bench]'\n"

"""`twinfer bench` as people call it: what it asks for, prints, writes down and exits with."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from PIL import Image
from tests.test_cli import WITHOUT, python
from typer.testing import CliRunner, Result

from tests.calls import PATIENCE_SECONDS
from tests.conftest import DigitsServer
from tests.gated import Gate, write_gated
from tests.processes import COMMAND, environment
from tests.servers import DIGITS, running
from twinfer.cli import app
from twinfer.cli.bench import INSTALL
from twinfer.load import Measurement, Point, Tally, draw
from twinfer.v1 import ensemble_service_pb2 as pb

QUICK = ("--seconds", "0.2", "--warm-up", "0")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "100", "NO_COLOR": "1"})


def points(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["points"]
    return found


@pytest.mark.parametrize("way", [[], ["--stream"], ["--batch", "4"]], ids=["Infer", "InferStream", "BatchInfer"])
def test_without_inputs_it_asks_random_rows_in_a_sweep(digits_server: DigitsServer, tmp_path: Path, way: list[str]) -> None:
    sweep = ["--concurrency", "1,3", "--rate", "40", "--json", str(tmp_path / "figures.json")]
    result = bench(digits_server.address, *QUICK, *sweep, *way)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "64 random rows, images of 224 x 224" in lines[0]
    loads = [load for line in lines for load in ("1 call", "3 calls", "40/s") if line.startswith(f"{load} ")]
    assert loads == ["1 call", "3 calls", "40/s"] * 2
    assert lines[-1] == "Every answer was compared with the first one to the same row, within 0.01."
    assert [(point.get("concurrency"), point.get("rate")) for point in points(tmp_path / "figures.json")] == [
        (1, None),
        (3, None),
        (None, 40),
    ]


def test_the_figures_are_written_down_with_what_they_were_measured_with(digits_server: DigitsServer, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    image = next((DIGITS / "heldout" / "images").iterdir())
    given = ["--image", str(image), "--input", "text=three", "--no-check", "--repeats", "2", "--concurrency", "2"]
    result = bench(digits_server.address, *QUICK, *given, "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "Answers were not compared." in result.stdout
    written = json.loads(file.read_text())
    assert written["title"] == f"digits version 1 at {digits_server.address}: Infer, one row"
    assert written["load"] == {
        "target": digits_server.address,
        "method": "Infer",
        "requests": 1,
        "seconds": 0.2,
        "warm_up_seconds": 0.0,
        "timeout_seconds": 30.0,
        "batch": 1,
        "max_in_flight": 512,
        "seed": 0,
        "is_checked": False,
    }
    assert {"python", "twinfer", "grpcio"} <= written["client"]["versions"].keys()
    [point] = written["points"]
    assert point["seconds"] == pytest.approx(0.4)
    assert len(point["repeats_per_second"]) == 2
    assert point["is_complete"]
    assert point["requests_per_second"] == pytest.approx(sum(point["repeats_per_second"]) / 2)
    assert list(point["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max"]
    assert list(point["latency_ms"].values()) == sorted(point["latency_ms"].values())
    assert (point["failed"], point["errors"], point["wrong"], point["degraded"], point["not_sent"]) == (0, {}, 0, 0, 0)
    assert 1.0 <= point["batch_size"] <= 2.0
    assert 0.0 < point["server_ms"]["device"] <= point["server_ms"]["total"] < point["latency_ms"]["max"]
    assert 0.0 < point["client_loop_share"] <= point["client_cpu_cores"]
    histogram = HdrHistogram.decode(point["latency_histogram"])
    assert histogram.total_count == point["answered"] > 0
    assert histogram.get_value_at_percentile(99.0) / 1e3 == point["latency_ms"]["p99"]


def test_rows_of_a_folder_are_sent_in_turn(digits_server: DigitsServer) -> None:
    result = bench(digits_server.address, *QUICK, "--data", str(DIGITS / "heldout"), "--concurrency", "2")
    assert result.exit_code == 0, result.output
    assert "Infer, 599 rows of" in result.stdout


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_shows_every_point(digits_server: DigitsServer, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"load.{suffix}"
    result = bench(digits_server.address, *QUICK, "--concurrency", "1,2", "--rate", "20", "--text", "three", "--picture", str(file))
    assert result.exit_code == 0, result.output
    if suffix == "png":
        with Image.open(file) as picture:
            assert picture.width > 2 * picture.height
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
    else:
        assert file.read_text().count("<path") > 20


def test_a_load_that_had_no_answer_in_time_is_drawn_too(tmp_path: Path) -> None:
    tally = Tally()
    tally.add_answer(pb.InferResponse(), 0.3, is_right=True)
    tally.seconds = 0.2
    draw([Measurement(Point("rate", 20), tally)], "too late", tmp_path / "load.svg")
    assert (tmp_path / "load.svg").read_text().count("<path") > 20


# --- failures ---------------------------------------------------------------------------------------------------------


def with_a_bad_row(folder: Path) -> list[str]:
    (folder / "rows.csv").write_text("image,text\n,three\nrows.csv,three\n")
    return ["--data", str(folder), "--concurrency", "1"]


def test_a_failure_is_said_with_its_reason_and_exits_with_1(digits_server: DigitsServer, tmp_path: Path) -> None:
    arguments = with_a_bad_row(tmp_path)
    result = bench(digits_server.address, *QUICK, *arguments, "--json", str(tmp_path / "figures.json"))
    assert result.exit_code == 1
    [point] = points(tmp_path / "figures.json")
    assert point["errors"].keys() == point["error_examples"].keys() == {"INVALID_INPUT"}
    assert abs(point["failed"] - point["answered"]) <= 1
    assert f"1 call: INVALID_INPUT, {point['failed']} times, such as: inputs['image']" in result.stderr


def test_failures_may_be_put_up_with(digits_server: DigitsServer, tmp_path: Path) -> None:
    assert bench(digits_server.address, *QUICK, *with_a_bad_row(tmp_path), "--no-fail-on-errors").exit_code == 0


def test_what_fails_without_any_load_is_said_at_once(digits_server: DigitsServer) -> None:
    result = bench(digits_server.address, "--input", "sound=three")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("INVALID_ARGUMENT (UNKNOWN_INPUT)")


def test_a_server_that_nobody_can_reach_is_said_at_once() -> None:
    result = bench("127.0.0.1:1", "--timeout", "200ms")
    assert (result.exit_code, result.stdout) == (1, "")


def test_an_interrupt_prints_what_was_measured_so_far(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    for name, first in (("good", 0.0), ("held", -1.0)):
        np.save(tmp_path / f"{name}.npy", np.array([first, 0.0, 9.0], np.float32))
    (tmp_path / "rows.csv").write_text("numbers\ngood.npy\nheld.npy\n")
    gate = Gate(folder)
    with running(folder, trust_code=True) as server:
        arguments = ["bench", server.address, "--data", str(tmp_path), "--warm-up", "0", "--concurrency", "1,2"]
        command = [*COMMAND, *arguments, "--json", str(tmp_path / "figures.json")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        ) as process:  # fmt: skip
            gate.wait_for_somebody()  # the first row has been answered, and the second never is
            process.send_signal(signal.SIGINT)
            said, warned = process.communicate(timeout=PATIENCE_SECONDS)
        gate.open()
    assert process.returncode == 130
    assert "1 call" in said
    assert "2 calls" not in said
    assert warned.endswith("1 call: interrupted\n")
    assert "Traceback" not in warned
    [point] = points(tmp_path / "figures.json")
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
        (["--stream", "--batch", "2"], "give --stream or --batch, not both"),
        (["--picture", "load.jpg"], "load.jpg ends in '.jpg'; allowed: .png, .svg"),
        (["--json", "absent/figures.json"], "there is no such folder"),
        (["--text", "three", "--data", "."], "inputs are given, and --data too"),
        (["--data", "absent.csv"], "absent.csv"),
        (["--input", "three"], "is not NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    digits_server: DigitsServer, arguments: list[str], said: str
) -> None:  # fmt: skip
    result = bench(digits_server.address, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("name", ["hdrh", "matplotlib", "numpy", "PIL"])
def test_without_a_module_of_its_extra_it_says_how_to_install_that(name: str) -> None:
    done = python(WITHOUT.format(absent={name}), "bench")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"twinfer bench needs {name}, which is not installed. Install it:\n  {INSTALL}\n"
    assert INSTALL == "pip install 'twinfer[bench]'"

"""`twinfer profile`: figures for every setup or the reason why there are none, and sentences that follow from them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from tests.models import write_members
from tests.servers import DIGITS
from twinfer_server.cli import load_command
from twinfer_server.profile.measure import Point, SetupProfile
from twinfer_server.profile.report import Profile, summarise


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no longer than it takes to have figures."""
    monkeypatch.setattr("twinfer_server.profile.measure.SECONDS_PER_POINT", 0.0)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """An ensemble of two linear members, one of them in bf16."""
    torch.manual_seed(0)
    folder = write_members(tmp_path / "pair", {"one": nn.Linear(1, 3), "two": nn.Linear(1, 3)}, max_batch_size=2)
    document = (folder / "ensemble.toml").read_text()
    (folder / "ensemble.toml").write_text(document.replace("[members.two]", '[members.two]\nprecision = "bf16"\ntolerance = 1e-9'))
    return folder


def run(folder: Path, *options: str | Path, status: int = 0) -> tuple[str, dict[str, Any]]:
    """Run the command and return what it prints, on one line, and the JSON that it writes."""
    with NamedTemporaryFile(suffix=".json") as file:
        arguments = map(str, (folder, "--device", "cpu", "--trust-code", "--json", file.name, *options))
        done = CliRunner().invoke(load_command("profile"), list(arguments))
        assert done.exit_code == status, done.output
        return " ".join(done.output.split()), json.loads(file.read())


def test_every_setup_has_its_figures_or_its_reason(pair: Path, tmp_path: Path) -> None:
    picture = tmp_path / "profile.png"
    printed, document = run(pair, "--precision", "fp32,bf16,tf32", "--acceleration", "eager,tensorrt", "--picture", picture)
    setups = {setup["name"]: setup for setup in document["setups"]}
    assert set(setups) == {f"{one} {other}" for one in ("fp32", "bf16", "tf32") for other in ("eager", "tensorrt")}
    assert [name for name, setup in setups.items() if not setup["refused"]] == ["fp32 eager", "bf16 eager"]
    assert setups["tf32 eager"]["refused"].startswith('members.one.precision: found "tf32", refused: TF32 products')
    assert setups["fp32 tensorrt"]["refused"].startswith('members.one.acceleration: found "tensorrt", refused: TensorRT computes')
    for name in ("fp32 eager", "bf16 eager"):
        assert [point["batch_size"] for point in setups[name]["points"]] == [1, 2]
        for point in setups[name]["points"]:
            assert min(*point["solo_seconds"], point["serial_seconds"], point["streams_seconds"], point["overlap_ratio"]) > 0
            assert set(point["requests_per_second"]) == {"serial", "streams"}
        assert setups[name]["top_1"] > 0.4
    assert setups["fp32 eager"]["largest_difference"] == 0
    assert 0 < setups["bf16 eager"]["largest_difference"] < 0.05
    assert setups["bf16 eager"]["parameter_bytes"] == [size // 2 for size in setups["fp32 eager"]["parameter_bytes"]]
    for sentence in document["summary"]:
        assert " ".join(sentence.split()) in printed
    assert "tf32 eager: members.one.precision:" in printed
    with Image.open(picture) as image:
        assert image.size > (400, 200)


def test_without_options_the_folders_own_precisions_are_measured_whatever_they_tolerate(pair: Path) -> None:
    _, document = run(pair)
    [setup] = document["setups"]
    assert setup["name"] == "fp32 eager / bf16 eager"
    assert setup["member_errors"][0] == 0 < setup["member_errors"][1]
    assert setup["largest_difference"] > 0


def test_rows_of_a_folder_are_compared_in_place_of_made_up_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinfer_server.profile.measure.MIN_ROUNDS", 1)
    found = [run(DIGITS, "--precision", "bf16", *data)[1] for data in ((), ("--data", DIGITS / "heldout"))]
    assert [document["samples"] for document in found] == ["made-up samples", f"labelled rows of {DIGITS / 'heldout'}"]
    assert len({document["setups"][0]["largest_difference"] for document in found}) == 2
    assert all(document["setups"][0]["top_1"] > 0.9 for document in found)


def test_where_every_setup_is_refused_the_command_says_so_and_fails(pair: Path) -> None:
    printed, document = run(pair, "--precision", "tf32", "--picture", pair / "none.png", status=1)
    assert document["summary"][-1] == "Nothing could be measured: every precision and acceleration was refused."
    assert "TF32 products need an NVIDIA GPU" in printed
    assert not (pair / "none.png").exists()


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    command = "from twinfer_server.cli import main; import sys; main(['profile', *sys.argv[1:]])"
    arguments = [sys.executable, "-c", command, str(DIGITS), "--precision", "fp32, bf16", "--acceleration", "jit"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--acceleration: found 'jit'; allowed: eager, compile, tensorrt" in " ".join(done.stderr.split())


def make_point(batch_size: int, solo: Sequence[float], serial: float, streams: float, scatter: float = 0.0) -> Point:
    """Make a point of seconds."""
    rates = {"serial": batch_size / serial, "streams": batch_size / streams}
    return Point(batch_size, tuple(solo), serial, streams, serial / streams, scatter, sum(solo) / streams, rates)


def judge(*points: Point, device: str = "cpu", load: float = 0.0, **facts: Any) -> list[str]:
    """Say what a setup with these points amounts to."""
    names = ("vision", "language", "sound")[: len(points[0].solo_seconds)]
    return summarise(Profile("e", device, 2, load, names, "rows", (SetupProfile("bf16 eager", points=points, **facts),)))


@pytest.mark.parametrize(
    ("points", "start", "end"),
    [
        (
            [make_point(1, (1, 1), 2, 1), make_point(8, (4, 4), 8, 5)],
            "vision and language go well together on this CPU: in batches of 1 in bf16 eager they take 1,000 ms side by side and "
            "2,000 ms in turn, 2.00 times as fast (overlap ratio 2.00)",
            'execution = "streams" pays at every batch size.',
        ),
        (
            [make_point(1, (0.001, 0.001), 0.002, 0.004), make_point(8, (0.004, 0.004), 0.008, 0.007)],
            "vision and language gain a little from each other on this CPU: in batches of 8 in bf16 eager they take 7 ms",
            'execution = "streams" pays in batches of 8.',
        ),
        (
            [make_point(1, (0.9, 0.1), 1, 0.98), make_point(8, (8, 1), 9, 12)],
            "vision and language do not go well together on this CPU: side by side they are at best 1.02 ± 0.00",
            '0.75; vision takes 90% of their time, so that no more than 1.11 is possible. Keep execution = "serial".',
        ),
        (
            [make_point(4, (1, 1), 2, 2)],
            "vision and language do not go well together",
            'up to 2.00 would be possible, but they compete for the same CPU. Keep execution = "serial".',
        ),
        ([make_point(4, (1, 1), 2, 1.5, 0.4)], "vision and language do not go well", 'Keep execution = "serial".'),
        ([make_point(1, (1, 1, 1), 3, 1)], "vision, language and sound go well together", "at every batch size."),
    ],
    ids=["a good pair", "good at one size", "one member takes all", "rivals", "too uncertain to tell", "three members"],
)  # fmt: skip
def test_the_first_sentence_says_whether_members_go_well_together_and_why(points: list[Point], start: str, end: str) -> None:
    sentence = judge(*points)[0]
    assert sentence.startswith(start)
    assert sentence.endswith(end)


def test_further_sentences_say_where_most_requests_are_answered_and_name_a_busy_host_first() -> None:
    point = make_point(4, (0.1, 0.1), 0.2, 0.1)
    first, last = judge(point, device="cuda:0 H200", largest_difference=0.0123, top_1=0.998)
    assert "on this GPU" in first
    assert last == (
        "The most requests per second, 40, come with streams in batches of 4 in bf16 eager, whose fused prediction differs from "
        "fp32 eager by 0.012 at most and has the same class in 99.8% of the samples."
    )
    assert judge(make_point(1, (1,), 1, 1), load=7.5) == [
        "Other work kept the host busy (a load of 7.5 on 2 cores), so do not rely on this; measure again.",
        "The most requests per second, 1, come with serial in batches of 1 in bf16 eager.",
    ]

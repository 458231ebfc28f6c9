"""`twinfer compare`: every way of every member, with its figures or with the reason why it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.servers import DIGITS
from twinfer_server.comparison import command
from twinfer_server.tuning import ACCELERATIONS, PRECISIONS


def read_entries(capsys: pytest.CaptureFixture[str], **options: Any) -> list[dict[str, Any]]:
    """Run the command, and read what it prints."""
    command.compare_command(DIGITS, as_json=True, device="cpu", **options)
    entries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["entries"]
    return entries


@pytest.fixture
def few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave only ways that are quickly tried."""
    module = "twinfer_server.comparison.comparison"
    monkeypatch.setattr(f"{module}.ACCELERATIONS", {name: ACCELERATIONS[name] for name in ("eager", "tensorrt")})
    monkeypatch.setattr(f"{module}.PRECISIONS", {name: PRECISIONS[name] for name in ("fp32", "tf32", "bf16", "int8_dynamic")})
    monkeypatch.setattr("twinfer_server.tuning.pace.SECONDS", 0.0)


@pytest.mark.usefixtures("few_ways")
def test_every_way_has_its_figures_or_its_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    entries = read_entries(capsys, png=tmp_path / "ways.png")
    assert {entry["member"] for entry in entries} == {"vision", "language"}
    ways = {f"{entry['precision']} {entry['acceleration']}" for entry in entries}
    assert ways == {f"{one} {other}" for one in ("fp32", "tf32", "bf16", "int8_dynamic") for other in ("eager", "tensorrt")}
    assert len(entries) == 2 * len(ways)
    for entry in entries:
        if "refused" in entry:
            assert len(entry["refused"]) > 10
        else:
            assert all(value > 0 for value in entry["milliseconds"].values())
            assert entry["parameter_bytes"] > 0
            assert entry["largest_error"] < 0.05
            assert entry["top_1"] > 0.5
    plain = [entry for entry in entries if (entry["precision"], entry["acceleration"]) == ("fp32", "eager")]
    assert [entry["largest_error"] for entry in plain] == [0, 0]
    with Image.open(tmp_path / "ways.png") as picture:
        assert picture.size > (400, 200)


@pytest.mark.usefixtures("few_ways")
def test_rows_of_a_folder_are_computed_in_place_of_made_up_ones(capsys: pytest.CaptureFixture[str]) -> None:
    made_up, real = read_entries(capsys), read_entries(capsys, data=DIGITS / "heldout")
    errors = [[entry.get("largest_error") for entry in entries] for entries in (made_up, real)]
    assert errors[0] != errors[1]


@pytest.mark.usefixtures("few_ways")
def test_the_table_shows_refusals_behind_the_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    command.compare_command(DIGITS, device="cpu")
    printed = capsys.readouterr().out
    assert "bf16 eager" in printed
    assert "tf32 eager: TF32 is a kind of product that NVIDIA GPUs have" in " ".join(printed.split())

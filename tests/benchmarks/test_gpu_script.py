"""The script for the day a GPU is there, run small: on any machine it measures every part and writes it down."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import ROOT


def test_a_small_run_writes_every_part_with_what_it_was_measured_on(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--device", "cpu", "--result", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["device"] == "cpu"
    assert {"command", "date", "versions"} <= found.keys()
    assert found["versions"]["torch"]
    parts: dict[str, list[dict[str, Any]]] = {}
    for figure in found["figures"]:
        parts.setdefault(figure["part"], []).append(figure)
    assert parts.keys() == {"tests", "overlap", "streams", "memory", "steady"}
    points = {(each["pair"], each["batch"]) for each in parts["overlap"]}
    assert points == {(pair, size) for pair in ("launch-bound", "tiny") for size in (1, 4)}
    assert all(each["streams_ms"] > 0 and each["launch_ms"] > 0 and each["overlap_ratio"] > 0 for each in parts["overlap"])
    assert {each["streams"]: each["why_not"] for each in parts["streams"]} == dict.fromkeys(
        ("plain", "first one with priority", "green contexts"), "the device is a CPU"
    )
    assert all(each["batches"] > 0 for each in parts["steady"])
    page = file.with_suffix(".md").read_text()
    assert "overlap" in page
    assert found["command"] in page

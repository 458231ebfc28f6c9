"""`twinfer demo`, as a user runs it: real answers, and how the members ran; no ratio where they ran in turn."""

import json
import subprocess
import sys

from tests.calls import PATIENCE_SECONDS
from tests.servers import DIGITS

COMMAND = [sys.executable, "-c", "from twinfer.cli import main; main()", "demo", "--device", "cpu"]


def run(*arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=6 * PATIENCE_SECONDS, check=True)
    return done.stdout


def test_it_shows_answers_and_says_that_the_members_ran_in_turn() -> None:
    words = " ".join(run().split())
    stated = json.loads((DIGITS / "accuracies.json").read_text())
    assert f"fused {stated['fused']:.1%}" in words
    assert words.count("in truth") == 4
    assert 'in turn (execution "serial")' in words
    assert "ratio" not in words


def test_as_json_it_prints_one_object_alone() -> None:
    found = json.loads(run("--json"))
    assert found["accuracy"] | {"rows": found["rows"]} == json.loads((DIGITS / "accuracies.json").read_text())
    assert found["execution"] == "serial"
    assert found["overlap_ratio"] is None

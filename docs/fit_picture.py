"""Draws docs/fit.png, the README's picture, from a real fit of the digits: `.venv/bin/python docs/fit_picture.py`."""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from twinfer_server.fit.report import draw_cascade, draw_reliability

PICTURE = Path(__file__).with_name("fit.png")
DIGITS = Path(__file__).parents[1] / "ensembles" / "digits"
SHOWN = ("unfitted fusion", "fitted fusion")


def run_fit() -> dict[str, Any]:
    """Fit a copy of the digits and return its report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(DIGITS, Path(scratch) / "digits")
        command = [sys.executable, "-c", "from twinfer.cli import main; main()", "fit", str(folder), "--data", str(folder / "fit")]
        subprocess.run([*command, "--heldout", str(folder / "heldout"), "--saving", "0.5"], check=True)
        report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
        return report


def draw(report: dict[str, Any]) -> Image.Image:
    """Put the two fusions' reliability diagrams and the cascade's curve side by side."""
    scores = [score for score in report["scores"] if score["name"] in SHOWN]
    drawn = draw_reliability(scores, report["reliability"], columns=2), draw_cascade(report["cascade"])
    left, right = (Image.open(io.BytesIO(picture)).convert("RGB") for picture in drawn)
    right = right.resize((round(right.width * left.height / right.height), left.height), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (left.width + right.width, left.height), "white")
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width, 0))
    return whole


if __name__ == "__main__":
    draw(run_fit()).quantize(64).save(PICTURE, optimize=True)

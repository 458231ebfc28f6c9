"""`twinfer fit` as a whole: what it writes is served, its report says what the server answers, and what it learns helps."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import NAN_BELOW, Opinion, write_members
from tests.servers import DIGITS, ROOT, running
from twinfer import Client
from twinfer_server.device import CpuDevice
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import Ensemble, load_ensemble
from twinfer_server.fit.fit import FitOptions, fitted_spec, run_study, unfitted_spec
from twinfer_server.fit.labels import InvalidRows
from twinfer_server.fit.report import as_html
from twinfer_server.fit.rows import read_rows
from twinfer_server.fusion import FITTED_FILE, read_fitted, write_fitted
from twinfer_server.inputs import InputLimits
from twinfer_server.spec import EnsembleSpec, read_spec
from twinfer_server.trust import Trust

pytestmark = pytest.mark.usefixtures("one_thread")

FITTED = f'[fusion]\nmethod = "log_opinion_pool"\nfitted = "{FITTED_FILE}"\n'


def twinfer(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-c", "from twinfer.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_fusion(folder: Path, *tables: str) -> None:
    """Put other tables in the place of the file's `[fusion]`."""
    file = folder / "ensemble.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"\[fusion\].*?(?=\[batching\])", "\n".join(tables) + "\n", text, flags=re.DOTALL), encoding="utf-8")


def load(folder: Path, spec: EnsembleSpec | None = None) -> Ensemble:
    trust = Trust.read(runs_any_code=spec is not None, lists=())  # the digits' own programs are trusted
    return load_ensemble(folder, CpuDevice(streams=2), trust, InputLimits(), spec)


# --- the digits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FittedDigits:
    """A copy of the digits that has been fitted, and the report on it."""

    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> FittedDigits:
    folder = shutil.copytree(DIGITS, tmp_path_factory.mktemp("fitted") / "digits")
    done = twinfer("fit", folder, "--data", folder / "fit", "--heldout", folder / "heldout", "--saving", 0.5, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == report
    return FittedDigits(folder, report)


def test_the_fitted_fusion_beats_the_unfitted_one_on_rows_held_out(digits: FittedDigits) -> None:
    (difference,) = [pair for pair in digits.report["differences"] if pair["other"] == "unfitted fusion"]
    assert difference["one"] == "fitted fusion"
    assert difference["nll"]["high"] < 0
    assert difference["ece"]["high"] < 0
    assert difference["accuracy"]["value"] >= 0


def test_the_cascade_saves_half_of_the_rows_at_less_than_half_a_point(digits: FittedDigits) -> None:
    held_out = digits.report["cascade"]["held_out"]
    assert digits.report["cascade"]["first"] == "vision"
    assert held_out["saving"]["low"] > 0.5
    assert held_out["loss"]["value"] < 0.005


def test_the_report_is_one_page_that_says_it_all(digits: FittedDigits) -> None:
    page = (digits.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', page)
    assert page.count('src="data:image/png;base64,') == 2
    for score in digits.report["scores"]:
        assert f"<td>{score['name']}" in page
        assert f"{score['nll']['value']:.4f}" in page
        assert score["nll"]["low"] <= score["nll"]["value"] <= score["nll"]["high"]
    for heading in ("Scores", "Differences", "Reliability", "What was fitted", "Cascade: vision first"):
        assert f"<h2>{heading}" in page
    assert str(digits.folder / "heldout" / "rows.csv") in page


def test_the_report_names_every_row_that_was_fitted_to_and_every_row_that_was_not(digits: FittedDigits) -> None:
    rows = digits.report["rows"]
    assert rows["fitting"]["numbers"] == list(range(1, 199))
    assert rows["held_out"]["numbers"] == list(range(1, 600))
    assert rows["fitting"]["file"] != rows["held_out"]["file"]
    assert {len(bins) for bins in digits.report["reliability"].values()} == {15}
    curve = digits.report["cascade"]["curves"]["held-out rows"]
    assert 100 < len(curve["gate"]) == len(curve["loss"]) <= 400
    assert curve["saving"][-1] == 1.0


def test_the_docs_have_the_figures_that_the_command_prints(digits: FittedDigits) -> None:
    page = " ".join((ROOT / "docs" / "fusion-and-fitting.md").read_text(encoding="utf-8").split())
    for score in digits.report["scores"]:
        figures = [f"{100 * score['accuracy']['value']:.2f}", *(f"{score[name]['value']:.4f}" for name in ("nll", "brier", "ece"))]
        assert " ".join([score["name"], *figures]) in page
    held_out = digits.report["cascade"]["held_out"]
    for words, part in (("saves {} % of the rows", "saving"), ("costs {} points of accuracy", "loss")):
        value, low, high = (f"{100 * held_out[part][name]:.2f}" for name in ("value", "low", "high"))
        assert words.format(f"{value} ({low} to {high})") in page


@pytest.mark.parametrize(
    ("cascade", "name"),
    [
        pytest.param("", "fitted fusion", id="all members"),
        pytest.param('[cascade]\nfirst = "vision"', "cascade", id="a cascade with the gate that was found"),
    ],
)
def test_the_server_answers_what_the_report_says(digits: FittedDigits, cascade: str, name: str) -> None:
    write_fusion(digits.folder, FITTED, cascade)
    held_out = digits.folder / "heldout"
    with (held_out / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with running(digits.folder) as server, Client(server.address) as client:
        answers = [client.infer({"image": held_out / row["image"], "text": row["text"]}, top_k=10, timeout=30) for row in rows]
    said = [{one.label: one.probability for one in answer.prediction.classes} for answer in answers]
    (score,) = [score for score in digits.report["scores"] if score["name"] == name]
    right = [max(one, key=one.__getitem__) == row["label"] for one, row in zip(said, rows, strict=True)]
    assert np.mean(right) == pytest.approx(score["accuracy"]["value"])
    nll = [-math.log(one[row["label"]]) for one, row in zip(said, rows, strict=True)]
    assert np.mean(nll) == pytest.approx(score["nll"]["value"], abs=1e-5)


def test_a_fusion_that_was_fitted_to_another_model_is_refused_and_can_be_fitted_again(digits: FittedDigits, tmp_path: Path) -> None:
    folder = shutil.copytree(digits.folder, tmp_path / "digits")
    write_fusion(folder, FITTED, '[cascade]\nfirst = "language"')
    spec = read_spec(folder)
    digests = {member.name: member.model.digest for member in load(folder).members}
    fitted = read_fitted(folder, spec, digests)
    write_fitted(folder, replace(fitted, digests=digests | {"language": "0" * 64}))
    with pytest.raises(InvalidEnsemble, match=r"digests\.language: fitted to a model with sha256 0{64}"):
        load(folder)
    done = twinfer("fit", folder, "--data", folder / "fit", "--seed", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fitted log_opinion_pool to 99 rows; judged on 99 held-out rows" in done.stdout
    assert "cascade, language first" in done.stdout
    assert done.stdout.endswith(f'{FITTED}\n[cascade]\nfirst = "language"\n')
    load(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--saving", "0.5", "--tolerate", "0.1"], "--saving and --tolerate: found both; allowed: one of them", id="both"
        ),
        pytest.param(
            ["--method", "concatenation"], "fusion.method: found 'concatenation'; allowed to be fitted: 'weighted", id="a method"
        ),
        pytest.param(["--heldout", DIGITS], "found no rows.csv", id="no rows"),
        pytest.param(["--heldout", DIGITS / "fit"], "rows.csv, which is fitted to; allowed: other rows", id="the same rows"),
    ],
)
def test_what_cannot_be_done_is_said_plainly(tmp_path: Path, arguments: Sequence[object], message: str) -> None:
    folder = shutil.copytree(DIGITS, tmp_path / "digits", ignore=shutil.ignore_patterns("heldout"))
    done = twinfer("fit", folder, "--data", DIGITS / "fit", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not (folder / FITTED_FILE).exists()


# --- ensembles of opinions --------------------------------------------------------------------------------------------


def write_opinions(folder: Path, count: int, seed: int, task: str = "classification") -> Path:
    """Write an ensemble of two members that see the truth through noise, and rows some of which lack one of them.

    Opinion's logits are [x, -x]: with x = 1.5 (seen + noise) the left member is too sure and with 0.5 the right one too little.
    """
    write_members(folder, {"left": Opinion(), "right": Opinion()})
    file = folder / "ensemble.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('"classification"', f'"{task}"'), encoding="utf-8")
    generator = np.random.default_rng(seed)
    table = ["left,right,label"]
    for number in range(count):
        label = int(generator.integers(2))
        cells = []
        for name, scale in (("left", 1.5), ("right", 0.5)):
            x = scale * ((1 - 2 * label) + generator.normal())
            np.save(folder / f"{name}{number}.npy", np.array([x], dtype=np.float32))
            cells.append(f"{name}{number}.npy")
        if number % 5 == 0:
            cells[number % 2] = ""
        # As labels of which a row has one, 0 or 1, or none in every seventh row.
        table.append(",".join([*cells, "" if task == "multi_label" and number % 7 == 0 else str(label)]))
    (folder / "rows.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return folder


def study(folder: Path, options: FitOptions, on_stage: Callable[[str, int, int], None] = lambda *stage: None) -> dict[str, Any]:
    ensemble = load(folder, unfitted_spec(read_spec(folder), options.method))
    rows = read_rows(folder, ensemble.spec, (), 2)
    halves = rows.pick(range(0, len(rows), 2)), rows.pick(range(1, len(rows), 2))
    return run_study(ensemble, *halves, options, on_stage)


@pytest.mark.parametrize(
    ("method", "hidden"), [("weighted_mean", 0), ("log_opinion_pool", 0), ("maximum", 0), ("stacking", 0), ("stacking", 4)]
)
def test_every_method_learns_from_rows_that_may_lack_a_member(tmp_path: Path, method: str, hidden: int) -> None:
    findings = study(write_opinions(tmp_path, 400, seed=1), FitOptions(method, hidden))
    (difference, *_) = findings["differences"]
    assert difference["other"] == "unfitted fusion"
    assert difference["nll"]["value"] < 0
    rows = {score["name"]: score["rows"] for score in findings["scores"]}
    assert rows["fitted fusion"] == 200
    assert rows["left"] + rows["right"] == 360
    assert load(tmp_path, fitted_spec(read_spec(tmp_path), method)).fusion.spec.fusion.fitted == FITTED_FILE
    assert findings["fitted"]["temperatures"]["left"] > findings["fitted"]["temperatures"]["right"]


@pytest.mark.parametrize("method", ["log_opinion_pool", "stacking"])
def test_labels_of_which_a_row_may_have_any_number_are_fitted_one_by_one(tmp_path: Path, method: str) -> None:
    findings = study(write_opinions(tmp_path, 400, seed=11, task="multi_label"), FitOptions(method))
    (difference, *_) = findings["differences"]
    assert difference["nll"]["value"] < 0
    assert "Every label of a row counts as an answer of its own" in as_html(findings)


def test_the_same_rows_and_seed_give_the_same_report_and_the_same_fusion(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path, 120, seed=2)
    pages, files = [], []
    for _ in range(2):
        pages.append(as_html(study(folder, FitOptions("stacking", first="left", tolerance=0.02))))
        files.append((folder / FITTED_FILE).read_bytes())
    assert pages[0] == pages[1]
    assert files[0] == files[1]


def test_a_cascade_has_a_choice_only_where_another_member_can_be_asked(tmp_path: Path) -> None:
    findings = study(write_opinions(tmp_path, 400, seed=3), FitOptions("log_opinion_pool", first="right", saving=0.3))
    cascade = findings["cascade"]
    assert cascade["first"] == "right"
    assert cascade["held_out"]["rows"] == 160
    assert cascade["fitting"]["saving"] >= 0.3
    fitted = read_fitted(tmp_path, fitted_spec(read_spec(tmp_path), "log_opinion_pool"), {"left": "", "right": ""})
    assert fitted.gate == cascade["gate"]


def test_a_cascade_without_any_choice_is_refused(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path, 60, seed=9)
    table = [line.split(",") for line in (folder / "rows.csv").read_text(encoding="utf-8").splitlines()]
    either = [
        f"{left},,{label}" if number % 4 < 2 else f",{right},{label}" for number, (left, right, label) in enumerate(table[1:])
    ]
    rows = [line for line in either if not line.startswith(",,")]
    (folder / "rows.csv").write_text("\n".join([",".join(table[0]), *rows]) + "\n", encoding="utf-8")
    with pytest.raises(InvalidRows, match="found no fitting rows with the inputs of 'left' and of another member"):
        study(folder, FitOptions("weighted_mean", first="left", saving=0.5))


def test_progress_is_told_of_every_stage_to_its_end(tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    study(write_opinions(tmp_path, 100, seed=4), FitOptions("weighted_mean"), lambda *stage: stages.append(stage))
    assert list(dict.fromkeys(name for name, _, _ in stages)) == ["fitting rows", "held-out rows", "fitting", "judging"]
    for name in ("fitting rows", "held-out rows", "fitting"):
        steps = [(done, total) for stage, done, total in stages if stage == name]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_an_output_that_is_not_finite_counts_as_absent(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path, 100, seed=5)
    np.save(folder / "left1.npy", np.array([NAN_BELOW - 1], dtype=np.float32))
    findings = study(folder, FitOptions("log_opinion_pool"))
    rows = {score["name"]: score["rows"] for score in findings["scores"]}
    assert (rows["left"], rows["right"], rows["fitted fusion"]) == (49, 40, 50)
    assert all(math.isfinite(score["nll"]["value"]) for score in findings["scores"])


def test_a_member_that_fails_is_named(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path, 60, seed=10)
    ensemble = load(folder, unfitted_spec(read_spec(folder), "weighted_mean"))
    opinion: Any = ensemble.members[1].model.module
    opinion.error = RuntimeError("out of order")
    rows = read_rows(folder, ensemble.spec, (), 2)
    with pytest.raises(InvalidEnsemble, match=r"members\.right: failed on the rows: .*RuntimeError"):
        run_study(ensemble, rows, rows, FitOptions("weighted_mean"), lambda *stage: None)


def test_a_member_that_no_row_has_input_for_is_named(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path, 60, seed=6)
    table = [line.split(",") for line in (folder / "rows.csv").read_text(encoding="utf-8").splitlines()]
    kept = [f"{right},{label}" for _, right, label in table if right]
    (folder / "rows.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    with pytest.raises(InvalidRows, match=r"found no row with the inputs \['left'\] of member 'left'; allowed: some"):
        study(folder, FitOptions("weighted_mean"))


def test_an_input_of_the_wrong_shape_is_named_by_its_row(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path, 60, seed=7)
    np.save(folder / "right2.npy", np.zeros(3, dtype=np.float32))
    with pytest.raises(InvalidRows, match=r"rows\.csv, row 3: inputs\['right'\]"):
        study(folder, FitOptions("weighted_mean"))


def test_tasks_without_a_truth_to_learn_are_refused(tmp_path: Path) -> None:
    spec = read_spec(write_opinions(tmp_path, 1, seed=8)).model_copy(update={"task": "embedding"})
    with pytest.raises(InvalidEnsemble, match="task: found 'embedding'; allowed to be fitted: 'classification', 'multi_label'"):
        unfitted_spec(spec, "weighted_mean")

"""The report on held-out rows: how good the predictions are, as JSON, and as one page with its pictures inside."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from .outputs import Prediction
from .scores import BINS, Flags, compare, judge, list_bins, measure

INK, GRID, PLAIN, FITTED, GAP = "#24292f", "#d8dce0", "#8a8f98", "#2b6cb0", "#e07a5f"
STYLE: Any = {
    "axes.axisbelow": True, "axes.edgecolor": GRID, "axes.grid": True, "axes.labelsize": 8, "axes.titlesize": 9,
    "figure.constrained_layout.use": True, "grid.color": GRID, "grid.linewidth": 0.5, "legend.fontsize": 8,
    "legend.frameon": False, "text.color": INK, "xtick.color": GRID, "xtick.labelcolor": INK, "xtick.labelsize": 8,
    "ytick.color": GRID, "ytick.labelcolor": INK, "ytick.labelsize": 8,
}  # fmt: skip
"""What the pictures look like, for matplotlib."""


def judge_all(
    predictions: Sequence[Prediction], targets: Flags, is_multi_label: bool, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Score predictions by the truth, bool [rows, classes]: alone, in pairs and by bin of confidence."""
    judged = {one.name: judge(one.probabilities, targets, one.present, is_multi_label) for one in predictions}
    scores: list[dict[str, Any]] = [
        {"name": one.name, "kind": one.kind, "is_fitted": one.is_fitted, "rows": int(one.present.sum())}
        | measure(judged[one.name], seed)
        for one in predictions
    ]
    members = [score for score in scores if score["kind"] == "member" and not score["is_fitted"]]
    best: str = max(members, key=lambda score: score["accuracy"]["value"])["name"]
    pairs = [("fitted fusion", "unfitted fusion"), ("fitted fusion", best), ("cascade", "fitted fusion")]
    return {
        "scores": scores,
        "best_member": best,
        "differences": [
            {"one": one, "other": other} | compare(judged[one], judged[other], seed) for one, other in pairs if one in judged
        ],
        "reliability": {name: list_bins(rows) for name, rows in judged.items()},
    }


def write_report(findings: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`, which is made where it is missing; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(as_html(findings), encoding="utf-8")
    return page


def as_html(findings: Mapping[str, Any]) -> str:
    """Render the page; it needs nothing from anywhere else."""
    # Names of members and labels come from files: all of it is escaped.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["score"] = format_score
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    scores = [score for score in findings["scores"] if score["name"] != "cascade"]
    # What is fitted stands below what is not.
    pictures = {"reliability": draw_reliability(scores, findings["reliability"], columns=len(scores) // 2)}
    pictures |= {"cascade": draw_cascade(findings["cascade"])} if findings["cascade"] else {}
    return template.render(findings, pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()})


def format_score(interval: Mapping[str, float], name: str = "", is_signed: bool = False) -> tuple[str, str]:
    """Write a score, and its range; accuracy in percent."""
    factor, form = (100, ".2f") if name == "accuracy" else (1, ".4f")
    value, low, high = (f"{factor * interval[key]:{'+' if is_signed else ''}{form}}" for key in ("value", "low", "high"))
    return value, f"({low} to {high})"


@rc_context(STYLE)
def draw_reliability(scores: Sequence[Mapping[str, Any]], bins: Mapping[str, Sequence[Mapping[str, float]]], columns: int) -> bytes:
    """Draw the reliability diagrams of these scores' predictions as a PNG, so many side by side.

    A bar is the accuracy of the answers in a bin of confidence, paler the fewer they are; its gap to their confidence is hatched.
    """
    lines = -(-len(scores) // columns)
    figure = Figure(figsize=(3.0 * columns, 3.15 * lines))
    for number, score in enumerate(scores, start=1):
        axes = figure.add_subplot(lines, columns, number)
        count, confidence, accuracy = np.array([list(found.values()) for found in bins[score["name"]]]).T
        middles, width = (np.arange(BINS) + 0.5) / BINS, 0.92 / BINS
        bars = axes.bar(middles, accuracy, width, color=FITTED if score["is_fitted"] else PLAIN)
        for bar, share in zip(bars, count / count.max(), strict=True):
            bar.set_alpha(0.25 + 0.75 * share**0.5)
        axes.bar(middles, confidence - accuracy, width, accuracy, fill=False, edgecolor=GAP, hatch="////", linewidth=0.6)
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy")
        axes.set_title("{name}\nECE {ece[value]:.3f} ({ece[low]:.3f} to {ece[high]:.3f})".format_map(score))
    return _as_png(figure)


@rc_context(STYLE)
def draw_cascade(cascade: Mapping[str, Any]) -> bytes:
    """Draw the accuracy that is left against the rows that are saved, for every gate, with what the chosen gate does marked."""
    figure = Figure(figsize=(6.6, 3.6))
    axes = figure.add_subplot(title=f"every gate; marked: {cascade['gate']:.4f}", ylabel="accuracy, %")
    axes.set_xlabel("rows that the other members never see, %")
    held_out = {name: cascade["held_out"][name]["value"] for name in ("saving", "loss")}
    sets = (("fitting rows", cascade["fitting"], PLAIN, "--"), ("held-out rows", held_out, FITTED, "-"))
    for name, chosen, color, style in sets:
        whole, curve = cascade["accuracies"][name], cascade["curves"][name]
        here, kept = 100 * chosen["saving"], 100 * (whole - chosen["loss"])
        label = f"{name}: {here:.2f} % saved, {kept:.2f} of {100 * whole:.2f} % accuracy kept"
        saved, left = 100 * np.array(curve["saving"]), 100 * (whole - np.array(curve["loss"]))
        axes.step(saved, left, where="post", color=color, linestyle=style, linewidth=1.6, label=label)
        axes.plot(here, kept, "o", color=GAP, markersize=7, zorder=3)
    axes.legend(loc="lower left")
    return _as_png(figure)


def _as_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()

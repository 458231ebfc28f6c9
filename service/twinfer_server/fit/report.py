"""The report on held-out rows: how good the predictions are, as JSON, and as one page with its pictures inside."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .outputs import Prediction
from .scores import BINS, Flags, compare, judge, list_bins, measure, measure_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.j2"
INK, GRID, PLAIN, FITTED, GAP = "#24292f", "#d8dce0", "#8a8f98", "#2b6cb0", "#e07a5f"


def judge_all(
    predictions: Sequence[Prediction], targets: Flags, labels: Sequence[str], is_multi_label: bool, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Score predictions by the truth, bool [rows, classes]: alone, in pairs, by bin of confidence and by class."""
    judged = {one.name: judge(one.probabilities, targets, one.present, is_multi_label) for one in predictions}
    scores: list[dict[str, Any]] = [
        {"name": one.name, "kind": one.kind, "is_fitted": one.is_fitted, "rows": int(one.present.sum())}
        | measure(judged[one.name], seed)
        for one in predictions
    ]
    members = [score for score in scores if score["kind"] == "member" and not score["is_fitted"]]
    best: str = max(members, key=lambda score: score["accuracy"]["value"])["name"]
    pairs = [("fitted fusion", "unfitted fusion"), ("fitted fusion", best), ("cascade", "fitted fusion")]
    named = {one.name: _name_classes(one, is_multi_label) for one in predictions if one.name in (best, *pairs[0])}
    return {
        "scores": scores,
        "best_member": best,
        "differences": [
            {"one": one, "other": other} | compare(judged[one], judged[other], seed) for one, other in pairs if one in judged
        ],
        "classes": [
            {
                "label": labels[index] if labels else str(index),
                "rows": int(truth.sum()),
                "predictions": {name: _measure_class(classes[:, index], truth) for name, classes in named.items()},
            }
            for index, truth in enumerate(targets.T)
        ],
        "reliability": {name: list_bins(rows) for name, rows in judged.items()},
    }


def write_report(findings: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(as_html(findings), encoding="utf-8")


def as_html(findings: Mapping[str, Any]) -> str:
    """Render the page; it needs nothing from anywhere else."""
    import jinja2

    # Names of members and labels come from files: all of it is escaped.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["score"] = format_score
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    pictures = {"reliability": draw_reliability(findings["scores"], findings["reliability"])}
    if findings["cascade"]:
        pictures["cascade"] = draw_cascade(findings["cascade"])
    return template.render(findings, pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()})


def format_score(interval: Mapping[str, float], name: str = "", is_signed: bool = False) -> tuple[str, str]:
    """Write a score, and its range; accuracy in percent."""
    factor, form = (100, ".2f") if name == "accuracy" else (1, ".4f")
    value, low, high = (f"{factor * interval[key]:{'+' if is_signed else ''}{form}}" for key in ("value", "low", "high"))
    return value, f"({low} to {high})"


def draw_reliability(scores: Sequence[Mapping[str, Any]], bins: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Draw the reliability diagrams of these scores' predictions as a PNG, unfitted ones above fitted ones.

    A bar is the accuracy of the answers in a bin of confidence, paler the fewer they are; its gap to their confidence is hatched.
    """
    columns = max(sum(score["is_fitted"] == is_fitted for score in scores) for is_fitted in (False, True))
    figure = _figure(3.0 * columns, 3.15 * -(-len(scores) // columns))
    for number, score in enumerate(scores, start=1):
        axes = figure.add_subplot(-(-len(scores) // columns), columns, number)
        found = bins[score["name"]]
        counts, confidence, accuracy = (np.array([one[key] for one in found]) for key in ("count", "confidence", "accuracy"))
        middles, width = (np.arange(BINS) + 0.5) / BINS, 0.92 / BINS
        bars = axes.bar(middles, accuracy, width, color=FITTED if score["is_fitted"] else PLAIN)
        for bar, share in zip(bars, counts / counts.max(), strict=True):
            bar.set_alpha(0.25 + 0.75 * share**0.5)
        axes.bar(middles, confidence - accuracy, width, accuracy, fill=False, edgecolor=GAP, hatch="////", linewidth=0.6)
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy")
        axes.set_title("{name}\nECE {ece[value]:.3f} ({ece[low]:.3f} to {ece[high]:.3f})".format_map(score))
    return _as_png(figure)


def draw_cascade(cascade: Mapping[str, Any]) -> bytes:
    """Draw the accuracy that is left against the rows that are saved, for every gate, with what the chosen gate does marked."""
    figure = _figure(6.6, 3.6)
    axes = figure.add_subplot()
    held_out = {name: interval["value"] for name, interval in cascade["held_out"].items() if name != "rows"}
    for name, here, color, style in (
        ("fitting rows", cascade["fitting"], PLAIN, "--"),
        ("held-out rows", held_out, FITTED, "-"),
    ):
        whole, curve = cascade["accuracies"][name], cascade["curves"][name]
        left = f"{100 * (whole - here['loss']):.2f} of {100 * whole:.2f} % accuracy kept"
        axes.step(
            [100 * point["saving"] for point in curve], [100 * (whole - point["loss"]) for point in curve], where="post",
            color=color, linestyle=style, linewidth=1.6, label=f"{name}: {100 * here['saving']:.2f} % saved, {left}",
        )  # fmt: skip
        axes.plot(100 * here["saving"], 100 * (whole - here["loss"]), "o", color=GAP, markersize=7, zorder=3)
    axes.set_title(f"every gate; marked: {cascade['gate']:.4f}")
    axes.set(xlabel="rows that the other members never see, %", ylabel="accuracy, %")
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return _as_png(figure)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def _as_png(figure: "Figure") -> bytes:
    for axes in figure.axes:
        axes.tick_params(labelsize=8, color=GRID)
        axes.grid(color=GRID, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[:].set_color(GRID)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set(fontsize=9, color=INK)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _name_classes(prediction: Prediction, is_multi_label: bool) -> Flags:
    """Return the classes that a prediction names, bool [rows, classes]: the likeliest, or all above one half."""
    chances = np.where(prediction.present[:, None], prediction.probabilities, 0.0)
    if is_multi_label:
        return chances > 0.5
    named: Flags = np.arange(chances.shape[1]) == chances.argmax(1)[:, None]
    return named & prediction.present[:, None]


def _measure_class(named: Flags, truth: Flags) -> dict[str, Any]:
    """Return precision and recall of one class; None where there is none."""
    hits = int((named & truth).sum())
    counts = {"precision": int(named.sum()), "recall": int(truth.sum())}
    return {name: measure_share(hits, count) if count else None for name, count in counts.items()}

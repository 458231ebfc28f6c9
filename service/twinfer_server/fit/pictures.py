"""The report's pictures, as PNG: reliability diagrams, who agrees with whom, and what a cascade's gate saves and costs."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .gate import CascadePoint
from .metrics import BINS, Bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#24292f", "#d8dce0"
PLAIN, FITTED, GAP = "#8a8f98", "#2b6cb0", "#e07a5f"
DOTS_PER_INCH = 110


def draw_reliability(scores: Sequence[Mapping[str, Any]], diagrams: Mapping[str, Sequence[Bin]], columns: int) -> bytes:
    """Draw the reliability diagrams of the predictions that have these scores, so many side by side.

    A bar is the accuracy of the answers in a bin of confidence, paler the fewer they are; what it lacks or has too much is marked.
    """
    rows = -(-len(scores) // columns)
    figure = _figure(3.0 * columns, 3.15 * rows)
    for number, score in enumerate(scores):
        axes, bins = figure.add_subplot(rows, columns, number + 1), diagrams[score["name"]]
        most = max(entry.count for entry in bins)
        for place, entry in enumerate(bins):
            if not entry.count:
                continue
            strength = 0.25 + 0.75 * (entry.count / most) ** 0.5
            middle, width = (place + 0.5) / BINS, 0.92 / BINS
            axes.bar(middle, entry.accuracy, width, color=FITTED if score["is_fitted"] else PLAIN, alpha=strength)
            low, high = sorted((entry.accuracy, entry.confidence))
            axes.bar(middle, high - low, width, bottom=low, fill=False, edgecolor=GAP, hatch="////", linewidth=0.6)
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        title = "{name}\nECE {ece[value]:.3f} ({ece[low]:.3f} to {ece[high]:.3f})".format_map(score)
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("confidence", fontsize=8)
        axes.set_ylabel("accuracy", fontsize=8)
        _plain(axes)
    return _as_png(figure)


def draw_agreement(names: Sequence[str], shares: Sequence[Sequence[Mapping[str, float]]]) -> bytes:
    """Draw, for each pair, the share of rows on which both give the same answer, with its interval."""
    figure = _figure(1.6 + 0.95 * len(names), 1.0 + 0.6 * len(names))
    axes = figure.add_subplot()
    axes.imshow([[share["value"] for share in row] for row in shares], cmap="Blues", vmin=0.5, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            text = "{value:.1f} %\n{low:.1f} to {high:.1f}".format(**{name: 100 * part for name, part in value.items()})
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if value["value"] > 0.8 else INK)
    axes.spines[:].set_visible(False)
    return _as_png(figure)


def draw_cascade(
    curves: Mapping[str, Sequence[CascadePoint]], chosen: Mapping[str, CascadePoint], accuracies: Mapping[str, float]
) -> bytes:  # fmt: skip
    """Draw the accuracy that is left against the rows that are saved, on each set of rows, with what the chosen gate does marked.

    `accuracies` is that of asking everybody, by the curve's name.
    """
    figure = _figure(6.6, 3.6)
    axes = figure.add_subplot()
    for (name, curve), color, style in zip(curves.items(), (PLAIN, FITTED), ("--", "-"), strict=True):
        whole, here = accuracies[name], chosen[name]
        label = f"{name}: {100 * here.saving:.2f} % saved, {100 * (whole - here.loss):.2f} of {100 * whole:.2f} % accuracy kept"
        savings, left = [100 * point.saving for point in curve], [100 * (whole - point.loss) for point in curve]
        axes.step(savings, left, where="post", color=color, linestyle=style, linewidth=1.6, label=label)
        axes.plot(100 * here.saving, 100 * (whole - here.loss), "o", color=GAP, markersize=7, zorder=3)
        axes.set_title(f"every gate; marked: {here.gate:.4f}", fontsize=9, color=INK)
    axes.set_xlabel("rows that the other members never see, %", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    _plain(axes)
    return _as_png(figure)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def _plain(axes: "Axes") -> None:
    axes.tick_params(labelsize=8, color=GRID)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[:].set_color(GRID)


def _as_png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()

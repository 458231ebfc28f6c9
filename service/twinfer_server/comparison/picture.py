"""The comparison as a picture: for each member how fast each way is, and how far its answers are from fp32."""

from collections.abc import Sequence
from pathlib import Path

from .comparison import Entry

INK, GRID, FEW, MANY = "#24292f", "#d8dce0", "#8fb4d9", "#2b6cb0"
DOTS_PER_INCH = 110


def draw_comparison(entries: Sequence[Entry], path: Path) -> None:
    """Draw the ways that were not refused to a PNG: bars of speed-up over fp32 eager, with the largest error beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    members = list(dict.fromkeys(entry.member for entry in entries))
    by_member = {name: [entry for entry in entries if entry.member == name and not entry.refused] for name in members}
    heights = [max(1, len(found)) for found in by_member.values()]
    figure = Figure(figsize=(8.0, 0.7 * len(members) + 0.5 * sum(heights)), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(members), height_ratios=heights)
    for number, (name, found) in enumerate(by_member.items()):
        axes = figure.add_subplot(grid[number])
        counts = sorted((found[0].speed_ups or {}) if found else {})
        for place, count in enumerate(counts):
            speeds = [(entry.speed_ups or {})[count] for entry in found]
            offset = 0.36 * (place - (len(counts) - 1) / 2)
            positions = [row + offset for row in range(len(found))]
            label = f"{count} sample{'s' if count > 1 else ''}"
            axes.barh(positions, speeds, 0.34, color=MANY if place else FEW, label=label)
            for position, speed in zip(positions, speeds, strict=True):
                axes.text(speed, position, f" {speed:.2f}", va="center", fontsize=7, color=INK)
        axes.set_yticks(range(len(found)), [f"{entry.choice}\nerror {entry.largest_error:.1e}" for entry in found], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(f"{name}: times as fast as fp32 eager", fontsize=9, color=INK, loc="left")
        axes.tick_params(labelsize=8, color=GRID)
        axes.spines[:].set_color(GRID)
        axes.margins(x=0.12)
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(path, format="png", metadata={"Software": None})

"""A load as a picture: latency over throughput."""

from collections.abc import Sequence
from pathlib import Path

from twinfer.load.sweep import Measurement

COLORS = {"p50": "#2b6cb0", "p90": "#2f9e63", "p99": "#e5a33c", "p99.9": "#d9573f"}
INK, GRID = "#24292f", "#d8dce0"
TITLES = {"concurrency": "closed loop: calls in flight", "rate": "open loop: arrivals per second"}
DOTS_PER_INCH = 110


def draw(measurements: Sequence[Measurement], title: str, path: Path) -> None:
    """Draw to a PNG or SVG, by the path's suffix: a panel for each kind of load, a curve for each percentile.

    Raises ValueError if nothing was answered, or for another suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    answered = [one for one in measurements if one.tally.answered]
    kinds = list(dict.fromkeys(one.point.kind for one in answered))
    if not kinds:
        raise ValueError("nothing was answered; there is nothing to draw.")
    figure = Figure(figsize=(6.4 * len(kinds), 4.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    for number, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), number + 1)
        found = sorted((one for one in answered if one.point.kind == kind), key=lambda one: one.point.value)
        rates = [one.tally.rate for one in found]
        latencies = [one.tally.milliseconds() for one in found]
        for name, color in COLORS.items():
            axes.plot(rates, [latency[name] for latency in latencies], "o-", color=color, markersize=4, linewidth=1.4, label=name)
        for one, rate, latency in zip(found, rates, latencies, strict=True):
            place = (rate, latency["p50"])
            axes.annotate(f"{one.point.value:g}", place, (0, -11), textcoords="offset points", ha="center", fontsize=8, color=INK)
        axes.set_title(TITLES[kind], fontsize=9, color=INK, loc="left")
        axes.set_yscale("log")
        axes.set_xlim(0.0, 1.08 * max(rates) or 1.0)  # all answers may have come when the time was over
        axes.margins(y=0.12)
        axes.set_xlabel("answers per second", fontsize=8)
        axes.set_ylabel("latency, ms", fontsize=8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(color=GRID, linewidth=0.6, which="both")
        axes.tick_params(labelsize=8, which="both", color=GRID)
        axes.spines[:].set_color(GRID)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else {"Date": None})

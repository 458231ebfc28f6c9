"""The picture: how long the members take, what computing them side by side gains, and how many requests that answers."""

from pathlib import Path
from textwrap import fill
from typing import Any

from .measure import EXECUTIONS, SetupProfile
from .report import WORTH, Profile, summarise

INK, GRID, GAIN, LOSS = "#24292f", "#d8dce0", "#e6f4ea", "#fdecea"
MEMBERS = ("#2f9e63", "#d9573f", "#b0892b", "#2b9ab8", "#c2527f", "#8fb4d9", "#7a5cc2", "#5b8def")
BY_EXECUTION = {"serial": ("#8a8f98", "--", "s"), "streams": ("#7a5cc2", "-", "o")}
"""Color, style and marker."""
SETUPS = ("#2b6cb0", "#d9573f", "#2f9e63", "#b0892b", "#7a5cc2", "#2b9ab8", "#c2527f", "#24292f")
BAR = 0.27


def draw_profile(profile: Profile, path: Path) -> None:
    """Draw a profile that has a point to a PNG, the sentences on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(fill(sentence, 165) for sentence in summarise(profile)), x=0.01, ha="left", fontsize=10.5, color=INK)
    figure.supxlabel(f"{profile.ensemble} on {profile.device}", x=0.01, ha="left", fontsize=8, color="#8a8f98")
    measured = [setup for setup in profile.setups if setup.points]
    fastest = max(measured, key=lambda setup: max(max(point.requests_per_second.values()) for point in setup.points))
    sizes = [str(point.batch_size) for point in max((setup.points for setup in measured), key=len)]
    panels = figure.subplots(1, 3)
    _draw_times(panels[0], profile, fastest)
    _draw_speed_ups(panels[1], measured)
    _draw_rates(panels[2], measured)
    for axes in panels:
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_xlabel("batch size", fontsize=9, color=INK)
        axes.tick_params(labelsize=8, color=GRID)
        axes.spines[:].set_color(GRID)
        axes.legend(fontsize=8, framealpha=0.8, edgecolor=GRID)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_times(axes: Any, profile: Profile, setup: SetupProfile) -> None:
    """Draw, for each batch size, the members' solo latencies one on the other, beside what both executions took."""
    axes.set_title(f"ms per request in {setup.name}", fontsize=10, color=INK, loc="left")
    left = [index - BAR for index in range(len(setup.points))]
    below = [0.0] * len(left)
    for index, name in enumerate(profile.members):
        heights = [point.solo_seconds[index] * 1e3 / point.batch_size for point in setup.points]
        axes.bar(left, heights, BAR * 0.9, bottom=below, color=MEMBERS[index], label=f"{name} alone")
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for offset, name in enumerate(EXECUTIONS, start=1):
        heights = [getattr(point, f"{name}_seconds") * 1e3 / point.batch_size for point in setup.points]
        axes.bar([start + BAR * offset for start in left], heights, BAR * 0.9, color=BY_EXECUTION[name][0], label=name)


def _draw_speed_ups(axes: Any, setups: list[SetupProfile]) -> None:
    """Draw how many times as fast streams are as serial, where that helps and where it hurts."""
    axes.set_title("streams: times as fast as serial", fontsize=10, color=INK, loc="left")
    for color, setup in zip(SETUPS, setups, strict=False):
        speed_ups, errors = ([getattr(point, name) for point in setup.points] for name in ("speed_up", "speed_up_error"))
        label = f"{setup.name}, fused within {setup.largest_difference:.1g} of fp32" if setup.largest_difference else setup.name
        axes.errorbar(range(len(speed_ups)), speed_ups, errors, color=color, marker="o", capsize=2, label=label)
    low, high = axes.get_ylim()
    low, high = min(low, 0.8), max(high, 1.3)
    axes.axhspan(WORTH, high, color=GAIN, zorder=0, label="side by side pays")
    axes.axhspan(low, 1 / WORTH, color=LOSS, zorder=0, label="in turn is faster")
    axes.set_ylim(low, high)


def _draw_rates(axes: Any, setups: list[SetupProfile]) -> None:
    """Draw requests per second by setup and execution."""
    axes.set_title("requests per second", fontsize=10, color=INK, loc="left")
    for color, setup in zip(SETUPS, setups, strict=False):
        for name in EXECUTIONS:
            _, style, marker = BY_EXECUTION[name]
            rates = [point.requests_per_second[name] for point in setup.points]
            axes.plot(rates, style, color=color, marker=marker, markersize=4, label=f"{setup.name}, {name}")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID, linewidth=0.6)

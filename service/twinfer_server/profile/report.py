"""The report: sentences that answer the question, the tables behind them, both for JSON, and the picture."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import EXECUTIONS, Point, SetupProfile

WELL, WORTH = 1.2, 1.05
"""How many times as fast side by side is as in turn where members go well together, and where it is worth a mention."""
NOTES = (
    "Members' ms: solo latency, each on its stream. Serial, streams: ms from fork to join of all members. Speed-up: serial over "
    "streams, round by round. Overlap: the sum of the solo latencies over streams. Requests/s: one batch at a time, launch to "
    "completion."
)
GRID, GAIN, LOSS = "#d8dce0", "#e6f4ea", "#fdecea"
COLORS = ("#2b6cb0", "#d9573f", "#2f9e63", "#b0892b", "#7a5cc2", "#2b9ab8", "#c2527f", "#24292f")
EXECUTION_STYLES = {"serial": ("#8a8f98", "--"), "streams": ("#c8ccd2", "-")}
"""Color of the bars, style of the lines."""
BAR = 0.27


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured, and where: `load` is the host's load average when it began, `samples` what fp32 was compared on."""

    ensemble: str
    device: str
    cores: int
    load: float
    members: tuple[str, ...]
    samples: str
    setups: tuple[SetupProfile, ...]

    def walk(self) -> Iterator[tuple[SetupProfile, Point]]:
        """Yield every point with its setup."""
        return ((setup, point) for setup in self.setups for point in setup.points)

    def as_dict(self) -> dict[str, object]:
        """Return everything for JSON, the sentences first."""
        return {"summary": summarise(self), **asdict(self)}


def summarise(profile: Profile) -> list[str]:
    """Say in words whether the members go well together, and where the most requests are answered."""
    measured = list(profile.walk())
    if not measured:
        return ["Nothing could be measured: every precision and acceleration was refused."]
    sentences = [_judge_pair(profile, measured)] if len(profile.members) > 1 else []
    rates = [(rate, name, setup, point) for setup, point in measured for name, rate in point.requests_per_second.items()]
    rate, execution, setup, point = max(rates, key=lambda option: option[0])
    sentence = f"The most requests per second, {rate:,.0f}, come with {execution} in batches of {point.batch_size} in {setup.name}"
    if setup.largest_difference:
        sentence += f", whose fused prediction differs from fp32 eager by {setup.largest_difference:.2g} at most"
        sentence += "" if setup.top_1 is None else f" and has the same class in {setup.top_1:.1%} of the samples"
    sentences.append(f"{sentence}.")
    if profile.load > profile.cores:
        busy = f"Other work kept the host busy (a load of {profile.load:.1f} on {profile.cores} cores)"
        sentences.insert(0, f"{busy}, so do not rely on this; measure again.")
    return sentences


def _judge_pair(profile: Profile, measured: Sequence[tuple[SetupProfile, Point]]) -> str:
    """Say whether side by side is faster than in turn, where, and why not."""

    def gain(point: Point) -> float:
        """Return the speed-up less two standard errors: among many points some are high by chance."""
        return point.speed_up - 2 * point.speed_up_error

    names = f"{', '.join(profile.members[:-1])} and {profile.members[-1]}"
    device = "GPU" if profile.device.startswith("cuda") else "CPU"
    setup, best = max(measured, key=lambda each: gain(each[1]))
    where = f"in batches of {best.batch_size} in {setup.name}"
    if gain(best) >= WORTH:
        gaining = [str(point.batch_size) for point in setup.points if gain(point) >= WORTH]
        reach = "at every batch size" if len(gaining) == len(setup.points) else f"in batches of {', '.join(gaining)}"
        return (
            f"{names} {'go well together' if gain(best) >= WELL else 'gain a little from each other'} on this {device}: "
            f"{where} they take {write_ms(best.streams_seconds)} ms side by side and {write_ms(best.serial_seconds)} ms in turn, "
            f'{best.speed_up:.2f} times as fast (overlap ratio {best.overlap_ratio:.2f}). execution = "streams" pays {reach}.'
        )
    longest, total = max(best.solo_seconds), sum(best.solo_seconds)
    why = f"up to {total / longest:.2f} would be possible, but they compete for the same {device}"
    if total / longest < WELL:
        name = profile.members[best.solo_seconds.index(longest)]
        why = f"{name} takes {longest / total:.0%} of their time, so that no more than {total / longest:.2f} is possible"
    at_best = f"{best.speed_up:.2f} ± {best.speed_up_error:.2f} times as fast as in turn ({where})"
    return (
        f"{names} do not go well together on this {device}: side by side they are at best {at_best}, at worst "
        f'{min(point.speed_up for _, point in measured):.2f}; {why}. Keep execution = "serial".'
    )


def write_ms(seconds: float) -> str:
    """Write seconds as milliseconds, to three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def print_report(profile: Profile, console: Console) -> None:
    """Print the sentences, a table of times, one of memory and agreement, and what was refused."""
    for sentence in summarise(profile):
        console.print(sentence, style="bold", markup=False)
    console.print(f"{profile.ensemble} on {profile.device}", style="dim", markup=False)
    executions = (*EXECUTIONS, "speed-up", "overlap", *(f"requests/s {name}" for name in EXECUTIONS))
    times = Table("setup", "batch size", *profile.members, *executions, box=None, header_style="dim")
    for setup, point in profile.walk():
        seconds = (*point.solo_seconds, point.serial_seconds, point.streams_seconds)
        ratios = (f"{point.speed_up:.2f} ± {point.speed_up_error:.2f}", f"{point.overlap_ratio:.2f}")
        rates = (f"{point.requests_per_second[name]:,.0f}" for name in EXECUTIONS)
        times.add_row(setup.name, str(point.batch_size), *map(write_ms, seconds), *ratios, *rates)
    console.print(times)
    columns = ("parameters MB", "activations MB", "members' errors", "fused difference", "same class")
    costs = Table("setup", *columns, box=None, header_style="dim")
    for setup in profile.setups:
        if setup.refused:
            console.print(f"{setup.name}: {setup.refused}", style="dim", markup=False)
            continue
        kinds = (setup.parameter_bytes, setup.activation_bytes)  # none is counted of the latter on a CPU
        sizes = (" + ".join(f"{size / 1e6:.3g}" for size in sizes) if any(sizes) else "" for sizes in kinds)
        errors = ", ".join(f"{error:.2g}" for error in setup.member_errors)
        top_1 = "" if setup.top_1 is None else f"{setup.top_1:.1%}"
        costs.add_row(setup.name, *sizes, errors, f"{setup.largest_difference:.2g}", top_1)
    console.print(costs)
    console.print(f"{NOTES} Differences are from fp32 eager, on {profile.samples}.", style="dim", markup=False)


def draw_profile(profile: Profile, path: Path) -> None:
    """Draw a profile that has a point to a PNG: the sentences, times by member, speed-ups, and requests per second."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(fill(sentence, 165) for sentence in summarise(profile)), x=0.01, ha="left", fontsize=10.5)
    figure.supxlabel(f"{profile.ensemble} on {profile.device}", x=0.01, ha="left", fontsize=8)
    measured = [setup for setup in profile.setups if setup.points]
    fastest = max(measured, key=lambda setup: max(max(point.requests_per_second.values()) for point in setup.points))
    sizes = [str(point.batch_size) for point in max((setup.points for setup in measured), key=len)]
    panels = figure.subplots(1, 3)
    titles = (f"ms per request in {fastest.name}", "streams: times as fast as serial", "requests per second")
    _draw_times(panels[0], profile.members, fastest)
    for color, setup in zip(COLORS, measured, strict=False):
        speed_ups, errors = ([getattr(point, name) for point in setup.points] for name in ("speed_up", "speed_up_error"))
        panels[1].errorbar(range(len(speed_ups)), speed_ups, errors, color=color, marker="o", capsize=2, label=setup.name)
        for name in EXECUTIONS:
            rates = [point.requests_per_second[name] for point in setup.points]
            panels[2].plot(rates, EXECUTION_STYLES[name][1], color=color, marker="o", label=f"{setup.name}, {name}")
    low, high = panels[1].get_ylim()
    panels[1].axhspan(WORTH, max(high, 1.3), color=GAIN, zorder=0, label="side by side pays")
    panels[1].axhspan(min(low, 0.8), 1 / WORTH, color=LOSS, zorder=0, label="in turn is faster")
    panels[2].set_ylim(bottom=0)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_xlabel("batch size", fontsize=9)
        axes.spines[:].set_color(GRID)
        axes.legend(fontsize=8, framealpha=0.8, edgecolor=GRID)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_times(axes: Any, members: Sequence[str], setup: SetupProfile) -> None:
    """Draw, for each batch size, the members' solo latencies one on the other, beside what both executions took."""
    left = [index - BAR for index in range(len(setup.points))]
    below = [0.0] * len(left)
    for index, name in enumerate(members):
        heights = [point.solo_seconds[index] * 1e3 / point.batch_size for point in setup.points]
        axes.bar(left, heights, BAR * 0.9, bottom=below, color=COLORS[index % len(COLORS)], label=f"{name} alone")
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for offset, name in enumerate(EXECUTIONS, start=1):
        heights = [getattr(point, f"{name}_seconds") * 1e3 / point.batch_size for point in setup.points]
        axes.bar([start + BAR * offset for start in left], heights, BAR * 0.9, color=EXECUTION_STYLES[name][0], label=name)

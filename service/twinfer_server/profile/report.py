"""The report: sentences that answer the question, the tables behind them, and both for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

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
    names = f"{', '.join(profile.members[:-1])} and {profile.members[-1]}"
    device = "GPU" if profile.device.startswith("cuda") else "CPU"
    setup, best = max(measured, key=lambda each: _find_gain(each[1]))
    where = f"in batches of {best.batch_size} in {setup.name}"
    if _find_gain(best) >= WORTH:
        gaining = [str(point.batch_size) for point in setup.points if _find_gain(point) >= WORTH]
        reach = "at every batch size" if len(gaining) == len(setup.points) else f"in batches of {', '.join(gaining)}"
        return (
            f"{names} {'go well together' if _find_gain(best) >= WELL else 'gain a little from each other'} on this {device}: "
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


def _find_gain(point: Point) -> float:
    """Return the speed-up less two standard errors: among many points some are high by chance."""
    return point.speed_up - 2 * point.speed_up_error


def write_ms(seconds: float) -> str:
    """Write seconds as milliseconds, to three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _write_sizes(sizes: Sequence[int]) -> str:
    """Write the members' sizes in MB; nothing where none was counted, as on a CPU."""
    return " + ".join(f"{size / 1e6:.3g}" for size in sizes) if any(sizes) else ""


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
        sizes = (_write_sizes(sizes) for sizes in (setup.parameter_bytes, setup.activation_bytes))
        errors = ", ".join(f"{error:.2g}" for error in setup.member_errors)
        top_1 = "" if setup.top_1 is None else f"{setup.top_1:.1%}"
        costs.add_row(setup.name, *sizes, errors, f"{setup.largest_difference:.2g}", top_1)
    console.print(costs)
    console.print(f"{NOTES} Differences are from fp32 eager, on {profile.samples}.", style="dim", markup=False)

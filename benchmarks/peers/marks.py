"""The marks that twinfer has to reach: what it does beside others in the same run, as ratios of medians."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.harness import Figure
from benchmarks.loop import Served
from benchmarks.peers.contenders import BARE, LEAN, MOSEC, TRITON, TWINFER

MAX_MIB = 350.0
FREE = "free"
"""The runs in which nothing is pinned."""
PINNED = "pinned"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """What was measured."""

    pair: str
    cores: str
    in_flight: int
    server: str
    way: str


Medians = Mapping[Point, Served]
WAY_OF = {TWINFER: "Infer", BARE: "Infer", LEAN: "Infer", MOSEC: "HTTP", TRITON: "ModelInfer"}


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark; `value` is None where something it takes was not measured."""

    name: str
    value: float | None
    wanted: float
    is_at_most: bool = False

    @property
    def outcome(self) -> str:
        """Whether it was reached."""
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.wanted if self.is_at_most else self.value >= self.wanted) else "missed"

    def to_figure(self) -> dict[str, object]:
        """Write the mark down."""
        wanted = f"{'at most' if self.is_at_most else 'at least'} {self.wanted:g}"
        return {
            "mark": self.name,
            "value": None if self.value is None else round(self.value, 3),
            "wanted": wanted,
            "outcome": self.outcome,
        }


def judge(medians: Medians, servers: Mapping[tuple[str, str], Figure]) -> list[Mark]:
    """Return all marks. `servers` has, by pair and server, `first_answer_seconds` and `peak_mib`, of the pinned runs."""
    marks = list(_judge_lone(medians))

    def rates(pair: str, level: int, other: str, wanted: float, way: str = "Infer", cores: str = PINNED) -> Mark:
        ours = medians.get(Point(pair, cores, level, TWINFER, way))
        value = _relate(
            lambda one, two: one.requests_per_second / two.requests_per_second, ours, _other(medians, pair, level, other, cores)
        )
        suffix = ", unpinned" if cores == FREE else ""
        return Mark(f"{pair}, {way}, {level} in flight{suffix}: requests/s / {other}'s", value, wanted)

    marks += [rates("noop", level, LEAN, 0.85) for level in (32, 64)]
    for level in (32, 64):
        marks += [rates("small", level, LEAN, 0.97), rates("small", level, TRITON, 0.93), rates("small", level, MOSEC, 0.83)]
    marks += [rates("small", level, MOSEC, 1.0, cores=FREE) for level in (32, 64)]
    marks += [rates("small", 64, MOSEC, 1.05, way) for way in ("BatchInfer", "InferStream")]
    for pair in dict.fromkeys(pair for pair, _ in servers):
        ours, bare = servers.get((pair, TWINFER), {}), servers.get((pair, BARE), {})
        seconds, reference = ours.get("first_answer_seconds"), bare.get("first_answer_seconds")
        ratio = seconds / reference if isinstance(seconds, float) and isinstance(reference, float) else None
        marks.append(Mark(f"{pair}: seconds to the first right answer / bare's", ratio, 2.5, is_at_most=True))
        memory = ours.get("peak_mib")
        marks.append(Mark(f"{pair}: peak memory, MiB", memory if isinstance(memory, float) else None, MAX_MIB, is_at_most=True))
    return marks


def _judge_lone(medians: Medians) -> Iterator[Mark]:
    for pair, wanted in (("noop", 1.25), ("small", 1.1)):
        ours, bare = (medians.get(Point(pair, PINNED, 1, server, "Infer")) for server in (TWINFER, BARE))
        latency = _relate(lambda one, two: one.p50_ms / two.p50_ms, ours, bare)
        yield Mark(f"{pair}, Infer, alone: p50 / bare's", latency, wanted, is_at_most=True)
        if pair == "noop":
            cpu = _relate(lambda one, two: one.server_cpu_ms - two.server_cpu_ms, ours, bare)
            yield Mark(f"{pair}, Infer, alone: server CPU ms a request beyond bare's", cpu, 0.2, is_at_most=True)


def _other(medians: Medians, pair: str, level: int, server: str, cores: str) -> Served | None:
    return medians.get(Point(pair, cores, level, server, WAY_OF[server]))


def _relate(relation: Callable[[Served, Served], float], ours: Served | None, other: Served | None) -> float | None:
    return None if ours is None or other is None else relation(ours, other)

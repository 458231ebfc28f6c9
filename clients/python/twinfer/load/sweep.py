"""A load at several strengths, one after the other."""

import asyncio
import importlib.util
import selectors
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from twinfer.load.loops import Load, poisson, run_closed, run_open
from twinfer.load.tally import Tally


@dataclass(frozen=True, slots=True)
class Point:
    """How strong a load is: so many calls always under way, or so many arrivals per second."""

    kind: Literal["concurrency", "rate"]
    value: float

    def __str__(self) -> str:
        return f"{self.value:g} call{'s' * (self.value != 1)}" if self.kind == "concurrency" else f"{self.value:g}/s"


@dataclass(slots=True)
class Measurement:
    """What came of a point: all repeats together, and each one's rate."""

    point: Point
    tally: Tally = field(default_factory=Tally)
    rates: list[float] = field(default_factory=list)
    is_complete: bool = False


def run(
    load: Load, points: Sequence[Point], repeats: int, measurements: list[Measurement], on_start: Callable[[Point, Tally], None]
) -> None:
    """Measure all points, `repeats` times, in turn, so that what the machine does otherwise strikes all of them alike.

    `measurements` is filled while the load runs: who interrupts it has what was measured so far. `on_start` is told the
    tally that is being filled.
    """
    measurements.extend(Measurement(point) for point in points)
    for repeat in range(repeats):
        for measurement in measurements:
            tally = Tally()
            on_start(measurement.point, tally)
            try:
                _run_once(replace(load, seed=load.seed + repeat), measurement.point, tally)
                measurement.is_complete = repeat == repeats - 1
            finally:
                measurement.tally.add(tally)
                measurement.rates.append(tally.rate)


def _run_once(load: Load, point: Point, tally: Tally) -> None:
    if point.kind == "concurrency":
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(run_closed(load, int(point.value), tally))
    else:
        arrivals = poisson(point.value / load.batch, load.warm_up_seconds + load.seconds, load.seed)
        with asyncio.Runner(loop_factory=_punctual_loop) as runner:
            runner.run(run_open(load, arrivals, tally))


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


def _punctual_loop() -> asyncio.AbstractEventLoop:
    """Make a loop whose timers are exact to a part of a millisecond: uvloop's and epoll's are whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())

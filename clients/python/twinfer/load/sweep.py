"""A load at several strengths, one after the other."""

import asyncio
import importlib.util
import os
import platform
import selectors
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from twinfer.load.loops import Load, poisson, run_closed, run_open
from twinfer.load.tally import Tally

PACKAGES = ("twinfer", "grpcio", "protobuf", "numpy")


@dataclass(frozen=True, slots=True)
class Point:
    """How strong a load is: so many calls always under way, or so many requests per second."""

    kind: Literal["concurrency", "rate"]
    value: float

    def __str__(self) -> str:
        return f"{self.value:g} call{'s' * (self.value != 1)}" if self.kind == "concurrency" else f"{self.value:g}/s"


@dataclass(slots=True)
class Measurement:
    """A point, and what came of it."""

    point: Point
    tally: Tally = field(default_factory=Tally)
    is_complete: bool = False


def measure(load: Load, measurement: Measurement) -> None:
    """Run a load at the measurement's point. Fills the tally while it runs: an interrupted caller has what was counted so far."""
    point = measurement.point
    if point.kind == "concurrency":
        with asyncio.Runner(loop_factory=_fast_loop) as runner:
            runner.run(run_closed(load, int(point.value), measurement.tally))
    else:
        arrivals = poisson(point.value / load.batch, load.warm_up_seconds + load.seconds, load.seed)
        with asyncio.Runner(loop_factory=_punctual_loop) as runner:
            runner.run(run_open(load, arrivals, measurement.tally))
    measurement.is_complete = True


def figures(load: Load, title: str, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the figures of every point as plain values, with all that one must know to measure them again, but no credentials."""
    described = asdict(replace(load, requests=(), connection={}))
    del described["connection"]
    return {
        "title": title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": {
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": {"python": platform.python_version()} | {package: metadata.version(package) for package in PACKAGES},
        },
        "load": described | {"method": load.method, "requests": len(load.requests)},
        "points": [
            {one.point.kind: one.point.value, "is_complete": one.is_complete, **one.tally.figures()} for one in measurements
        ],
    }


def _fast_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop where it is installed."""
    library = importlib.import_module("uvloop" if importlib.util.find_spec("uvloop") else "asyncio")
    loop: asyncio.AbstractEventLoop = library.new_event_loop()
    return loop


def _punctual_loop() -> asyncio.AbstractEventLoop:
    """Return a loop whose timers are exact to a part of a millisecond: uvloop's and epoll's are whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())

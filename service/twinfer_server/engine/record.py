"""The record of a flight that has landed: plain numbers, for metrics and timelines.

All times are of `time.monotonic()`. A device with a clock of its own is anchored to the host's at the landing, so its times are as
late as the thread was that waited for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..device import Event
from ..errors import TwinferError
from ..executor import Bucket, Flight
from ..types import Response
from .breaker import Switch


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time."""

    began_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.began_at


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One member's part: `span` is beside whatever else ran, None inside a captured flight or a broken one."""

    name: str
    samples: int
    bucket: Bucket
    span: Span | None
    solo_seconds: float
    used_cuda_graph: bool
    has_failed: bool


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """A flight that has landed.

    `buffer_wait_seconds` is the longest that one of its rows waited although it was ready, from when lanes or slots were busy to its
    boarding; 0 if none had to. `copy` includes the host's writing to the staging buffers, and `fusion` the copy out. What cannot
    be seen is None: the parts of a captured flight, of which there is only `graph`; all of a broken one.
    """

    number: int
    execution: str
    rows: int
    boarded_at: float
    launch: Span
    landed_at: float
    copy: Span | None
    fusion: Span | None
    graph: Span | None
    members: tuple[MemberRecord, ...]
    overlap_ratio: float | None
    buffer_wait_seconds: float


OnFlight = Callable[[FlightRecord], None]
"""Told of every landing, on the thread that lands the flight."""


class Recorder(Protocol):
    """Who keeps the books of an engine."""

    def on_flight(self, record: FlightRecord) -> None:
        """Note a landing; on the thread that lands the flight."""
        ...

    def on_answer(self, answer: Response, seconds: float) -> None:
        """Note that a row has been answered, `seconds` after its arrival."""
        ...

    def on_switch(self, member: str, switch: Switch, trips: int) -> None:
        """Note how a member is switched now, and how often its breaker has switched it off so far."""
        ...

    def on_failure(self, error: TwinferError) -> None:
        """Note that a row has ended with an error."""
        ...


def record_flight(flight: Flight, landed_at: float) -> FlightRecord:
    """Write down a flight that has just landed, at `landed_at` by the host's clock. Call it before its slots are freed."""
    is_whole = flight.landed.is_done() and all(run.done.is_done() for run in flight.runs)
    # By the landing's own time where it is known: the thread that waited for it may have been woken late.
    anchor = (flight.landed.done_at if is_whole else None) or landed_at

    def at(event: Event) -> float:
        return anchor - flight.landed.seconds_since(event)

    is_seen = is_whole and flight.capture is None and not flight.is_spread
    members = tuple(
        MemberRecord(
            name=run.member.name,
            samples=len(run.rows),
            bucket=run.bucket,
            span=Span(at(run.started), at(run.done)) if is_seen else None,
            solo_seconds=alone,
            used_cuda_graph=run.used_cuda_graph,
            has_failed=run.error is not None,
        )
        for run, alone in zip(flight.runs, flight.solo_seconds, strict=True)
    )
    blocked = [row.blocked_at for row in flight.rows if row.blocked_at]
    return FlightRecord(
        number=flight.number,
        execution=flight.execution.name,
        rows=len(flight.rows),
        boarded_at=flight.boarded_at,
        launch=Span(flight.launched_at, flight.launch_ended_at or landed_at),
        landed_at=anchor,
        copy=Span(at(flight.started), max(at(run.staged) for run in flight.runs)) if is_seen else None,
        fusion=Span(max(at(run.done) for run in flight.runs), anchor) if is_seen else None,
        graph=Span(at(flight.started), anchor) if is_whole and not is_seen else None,
        members=members,
        overlap_ratio=flight.overlap_ratio,
        buffer_wait_seconds=flight.boarded_at - min(blocked) if blocked else 0.0,
    )

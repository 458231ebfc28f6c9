"""The record of a flight that has landed: plain numbers, for metrics and timelines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..device import Event
from ..ensemble import Flight


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took its time on a track; `began` and `ended` are seconds of `time.monotonic()`."""

    track: str
    name: str
    began: float
    ended: float
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One member's part: `seconds` beside whatever else ran, None inside a captured flight or if it failed."""

    name: str
    samples: int
    seconds: float | None
    alone_seconds: float
    was_captured: bool


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """A flight that has landed. `slot_wait_seconds` is how long its rows waited although they were ready, for want of a slot."""

    plan: str
    rows: int
    launched_at: float
    landed_at: float
    slot_wait_seconds: float
    overlap_ratio: float | None
    members: tuple[MemberRecord, ...]
    spans: tuple[Span, ...]


OnFlight = Callable[[FlightRecord], None]
"""Told of every landing, on the thread that lands the flight."""


def record_flight(flight: Flight, landed_at: float) -> FlightRecord:
    """Write down a flight that has just landed, at `landed_at` by the host's clock, which all device times are anchored to."""
    members = tuple(
        MemberRecord(
            name=run.member.name,
            samples=len(run.rows),
            seconds=run.seconds if run.error is None else None,
            alone_seconds=alone,
            was_captured=run.was_captured,
        )
        for run, alone in zip(flight.runs, flight.alone_seconds, strict=True)
    )
    return FlightRecord(
        plan=flight.plan.name,
        rows=len(flight.rows),
        launched_at=flight.launched_at,
        landed_at=landed_at,
        slot_wait_seconds=flight.slot_wait_seconds,
        overlap_ratio=flight.overlap_ratio,
        members=members,
        spans=_lay_out(flight, landed_at),
    )


def _lay_out(flight: Flight, landed_at: float) -> tuple[Span, ...]:
    """Lay the flight's parts out on the tracks of the lanes; of a broken flight there is only the whole."""
    facts = {"rows": len(flight.rows), "plan": flight.plan.name}
    if not flight.landed.is_done() or not all(run.done.is_done() for run in flight.runs):
        return (Span("launch", "broken flight", flight.launched_at, landed_at, facts),)

    # By the landing's own time where it is known: the thread that waited for it may have been woken late.
    anchor = flight.landed.done_at or landed_at

    def at(event: Event) -> float:
        return anchor - flight.landed.seconds_since(event)

    if flight.capture is not None:
        return (Span("graph", "flight", at(flight.started), anchor, facts),)
    staged = max(at(run.staged) for run in flight.runs)
    joined = max(at(run.done) for run in flight.runs)
    return (
        Span("launch", "stage and launch", flight.launched_at, max(flight.launched_at, staged), facts),
        Span("copy", "copy in", at(flight.started), staged, facts),
        *(
            Span(f"member {run.member.name}", run.member.name, at(run.started), at(run.done), {"samples": len(run.rows), **facts})
            for run in flight.runs
        ),
        Span("fusion", "fuse", joined, anchor, facts),
    )

"""A timeline: everything that happens in a stretch of time, as a Chrome trace that Perfetto opens."""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..types import InferRequest, Request
from .record import FlightRecord, Span

MAX_BARS = 50_000
"""A busier stretch loses its beginning; the trace stays small enough to send."""
ROW_TRACKS = ("admission", "decode", "queue", "encode")


@dataclass(frozen=True, slots=True)
class _Bar:
    """Something that took its time on a track."""

    track: str
    name: str
    span: Span
    facts: Mapping[str, object]


class Timeline:
    """Collects while it is listened to. Appending to a deque is atomic, so any thread may add."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._bars: deque[_Bar] = deque(maxlen=MAX_BARS)

    def add_flight(self, record: FlightRecord) -> None:
        """Add what a flight did on its lanes."""
        facts: dict[str, object] = {"flight": record.number, "execution": record.execution, "rows": record.rows}
        facts |= {"overlap_ratio": record.overlap_ratio, "slot_wait_ms": record.buffer_wait_seconds * 1e3}
        self._add("launch", "stage and launch", record.launch, facts)
        self._add("copy", "copy in", record.copy, facts)
        self._add("graph", "flight", record.graph, facts)
        for member in record.members:
            own = {"samples": member.samples, "alone_ms": member.solo_seconds * 1e3, "captured": member.used_cuda_graph}
            own |= {"failed": True} if member.has_failed else {}
            self._add(f"member {member.name}", member.name, member.span, facts | own)
        self._add("fusion", "fuse", record.fusion, facts)

    def add_row(self, row: Request, launched_at: float) -> None:
        """Add a row's way to its flight."""
        facts = {"request_id": row.request.caller.request_id}
        decoding_at = row.ready_at - row.decode_seconds
        self._add("admission", "admission", Span(row.request.arrived_at, decoding_at), facts)
        self._add("decode", "decode", Span(decoding_at, row.ready_at), facts)
        self._add("queue", "queue", Span(row.ready_at, launched_at), facts)

    def add_encoding(self, request: InferRequest, encoding: Span) -> None:
        """Add the writing of an answer."""
        self._add("encode", "encode", encoding, {"request_id": request.caller.request_id})

    def _add(self, track: str, name: str, span: Span | None, facts: Mapping[str, object]) -> None:
        if span is not None:
            self._bars.append(_Bar(track, name, span, facts))

    def write_trace(self, watched: Span) -> str:
        """Write what lies within a stretch of time in Chrome's trace event format, in microseconds from its beginning."""
        bars = [bar for bar in self._bars.copy() if bar.span.ended_at >= watched.began_at and bar.span.began_at <= watched.ended_at]
        return json.dumps({"traceEvents": list(_events(bars, watched.began_at)), "displayTimeUnit": "ms"})


def _events(bars: Iterable[_Bar], began: float) -> Iterable[dict[str, object]]:
    tracks: dict[str, int] = {track: number for number, track in enumerate(ROW_TRACKS, start=1)}
    for number, bar in enumerate(bars):
        start, length = (bar.span.began_at - began) * 1e6, max(0.0, bar.span.seconds) * 1e6
        tid = tracks.setdefault(bar.track, len(tracks) + 1)
        event: dict[str, object] = {"name": bar.name, "cat": bar.track, "pid": 1, "tid": tid, "ts": start}
        if bar.track in ROW_TRACKS:
            # Rows overlap on their track, which only asynchronous events may.
            yield event | {"ph": "b", "id": number, "args": dict(bar.facts)}
            yield event | {"ph": "e", "id": number, "ts": start + length}
        else:
            yield event | {"ph": "X", "dur": length, "args": dict(bar.facts)}
    yield {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "twinfer"}}
    for track, tid in tracks.items():
        yield {"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": track}}

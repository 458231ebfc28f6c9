"""A timeline: everything that happens in a stretch of time, as a Chrome trace that Perfetto opens."""

import json
from collections import deque
from collections.abc import Iterable

from ..rows import Row
from .record import FlightRecord, Span

MAX_SPANS = 50_000
"""A busier stretch loses its beginning; the trace stays small enough to send."""
ROW_TRACKS = ("admission", "decode", "queue", "encode")


class Timeline:
    """Collects spans while it is listened to. Appending to a deque is atomic, so any thread may add."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)

    def add_flight(self, record: FlightRecord) -> None:
        """Add what a flight did on its lanes."""
        self._spans.extend(record.spans)

    def add_row(self, row: Row, launched_at: float) -> None:
        """Add a row's way to its flight."""
        facts = {"request_id": row.request.caller.request_id}
        decoding_at = row.ready_at - row.decode_seconds
        self._spans.append(Span("admission", "admission", row.request.arrived_at, decoding_at, facts))
        self._spans.append(Span("decode", "decode", decoding_at, row.ready_at, facts))
        self._spans.append(Span("queue", "queue", row.ready_at, launched_at, facts))

    def add_encoding(self, began: float, ended: float) -> None:
        """Add the writing of an answer."""
        self._spans.append(Span("encode", "encode", began, ended, {}))

    def write_trace(self, began: float, ended: float) -> str:
        """Write what lies within a stretch of time in Chrome's trace event format, in microseconds from its beginning."""
        spans = [span for span in list(self._spans) if span.ended >= began and span.began <= ended]
        return json.dumps({"traceEvents": list(_events(spans, began)), "displayTimeUnit": "ms"})


def _events(spans: Iterable[Span], began: float) -> Iterable[dict[str, object]]:
    tracks: dict[str, int] = {track: number for number, track in enumerate(ROW_TRACKS, start=1)}
    for number, span in enumerate(spans):
        start, length = (span.began - began) * 1e6, max(0.0, span.ended - span.began) * 1e6
        tid = tracks.setdefault(span.track, len(tracks) + 1)
        event: dict[str, object] = {"name": span.name, "cat": span.track, "pid": 1, "tid": tid, "ts": start}
        if span.track in ROW_TRACKS:
            # Rows overlap on their track, which only asynchronous events may.
            yield event | {"ph": "b", "id": number, "args": dict(span.facts)}
            yield event | {"ph": "e", "id": number, "ts": start + length}
        else:
            yield event | {"ph": "X", "dur": length, "args": dict(span.facts)}
    yield {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "twinfer"}}
    for track, tid in tracks.items():
        yield {"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": track}}

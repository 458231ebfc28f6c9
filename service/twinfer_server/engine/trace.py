"""Records of complete batches for metrics, and the trace of a stretch of time that Perfetto opens.

All times are of `time.monotonic()`. A device with a clock of its own is anchored to the host's at a batch's completion, so its
times are as late as the thread was that waited for it.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..device import Event
from ..errors import TwinferError
from ..executor import STATE_OF_ERROR, Batch, Bucket
from ..types import InferRequest, Request, Response, State, TraceSpan

MAX_SPANS = 50_000
"""A busier stretch loses its beginning; the trace stays small enough to send."""
REQUEST_TRACKS = ("admission", "decode", "queue", "encode")


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
    """One member's part in a batch: `span` is beside whatever else ran, None in a batch that broke off."""

    name: str
    requests: int
    span: Span | None
    solo_seconds: float
    bucket: Bucket
    used_cuda_graph: bool
    has_failed: bool
    """Whether it raised, if only for some of the requests, or had nothing to compute for them."""
    retries: int
    """How many parts it computed again, after it had raised on the whole."""


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request of a batch whose trace is recorded, and what became of the batch's members for it, by name."""

    span: TraceSpan
    states: Mapping[str, State]


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A complete batch.

    `buffer_wait_seconds` is the longest that one of its requests waited although it was ready, because streams or staging buffers
    were busy. `copy` includes the host's writing to the staging buffers, and `fusion` the copy out; None where they cannot be seen,
    as of a batch that broke off or whose members are on several devices.
    """

    number: int
    execution: str
    batch_size: int
    launch: Span
    copy: Span | None
    fusion: Span | None
    members: tuple[MemberRecord, ...]
    fusion_version: int
    overlap_ratio: float | None
    buffer_wait_seconds: float
    whole: Span
    traced: tuple[TracedRequest, ...] = ()


def record_batch(batch: Batch, completed_at: float, outcomes: Sequence[Response | TwinferError]) -> BatchRecord:
    """Record a batch that completed at `completed_at` by the host's clock, with these outcomes of its requests.

    Call it before the batch's buffers are released.
    """
    is_whole = batch.completed.is_done() and all(run.done.is_done() for run in batch.runs)
    is_seen = is_whole and not batch.is_spread
    # By the completion's own time where it is known: the thread that waited for it may have been woken late.
    anchor = (batch.completed.done_at if is_whole else None) or completed_at

    def at(event: Event) -> float:
        return anchor - batch.completed.seconds_since(event)

    blocked = [request.blocked_at for request in batch.requests if request.blocked_at]
    return BatchRecord(
        number=batch.number,
        execution=batch.execution,
        batch_size=len(batch.requests),
        launch=Span(batch.launched_at, batch.launch_ended_at or completed_at),
        copy=Span(at(batch.started), max(at(run.staged) for run in batch.runs)) if is_seen else None,
        fusion=Span(max(at(run.done) for run in batch.runs), anchor) if is_seen else None,
        members=tuple(
            MemberRecord(
                name=run.member.name,
                requests=len(run.indices),
                span=Span(at(run.started), at(run.done)) if is_seen else None,
                solo_seconds=run.solo_seconds,
                bucket=run.bucket,
                used_cuda_graph=run.used_cuda_graph,
                has_failed=bool(run.errors or run.retries),
                retries=run.retries,
            )
            for run in batch.runs
        ),
        fusion_version=batch.version.number,
        overlap_ratio=batch.overlap_ratio,
        buffer_wait_seconds=batch.scheduled_at - min(blocked) if blocked else 0.0,
        whole=Span(batch.launched_at, completed_at),
        traced=tuple(
            TracedRequest(request.request.span, _find_states(batch, index, outcomes[index]))
            for index, request in enumerate(batch.requests)
            if request.request.span is not None
        ),
    )


def _find_states(batch: Batch, index: int, outcome: Response | TwinferError) -> dict[str, State]:
    """Say what became of each member that computed a request: as its caller was told, also before the batch ended."""
    answer = batch.requests[index].response
    if answer is not None and answer.done() and not answer.cancelled():
        outcome = batch.requests[index].outcome
    states = {}
    for run in batch.runs:
        if index not in run.first:
            continue
        if isinstance(outcome, Response):
            state = outcome.members[run.member.index].state
        elif outcome.member == run.member.name:
            state = STATE_OF_ERROR.get(type(outcome), State.FAILED)
        else:
            state = State.FAILED if index in run.errors else State.OK
        states[run.member.name] = state
    return states


@dataclass(frozen=True, slots=True)
class _Bar:
    """A span on a track, with what is to be known of it."""

    track: str
    name: str
    span: Span
    facts: Mapping[str, object]


class Trace:
    """Collects spans while it is listened to. Appending to a deque is atomic, so any thread may add."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._bars: deque[_Bar] = deque(maxlen=MAX_SPANS)

    def add_batch(self, record: BatchRecord) -> None:
        """Add what a batch did on its streams."""
        facts: dict[str, object] = {"batch": record.number, "execution": record.execution, "batch_size": record.batch_size}
        facts |= {"overlap_ratio": record.overlap_ratio, "buffer_wait_ms": record.buffer_wait_seconds * 1e3}
        self._add("launch", "stage and launch", record.launch, facts)
        self._add("copy", "copy in", record.copy, facts)
        for member in record.members:
            own = {"requests": member.requests, "solo_ms": member.solo_seconds * 1e3, "cuda_graph": member.used_cuda_graph}
            own |= {"failed": True} if member.has_failed else {}
            self._add(f"member {member.name}", member.name, member.span, facts | own)
        self._add("fusion", "fuse", record.fusion, facts)

    def add_request(self, request: Request, launched_at: float) -> None:
        """Add a request's way to its batch."""
        facts = {"request_id": request.request.request_id}
        decoding_at = request.ready_at - request.decode_seconds
        self._add("admission", "admission", Span(request.request.arrived_at, decoding_at), facts)
        self._add("decode", "decode", Span(decoding_at, request.ready_at), facts)
        self._add("queue", "queue", Span(request.ready_at, launched_at), facts)

    def add_encoding(self, request: InferRequest, encoding: Span) -> None:
        """Add the writing of a response."""
        self._add("encode", "encode", encoding, {"request_id": request.request_id})

    def _add(self, track: str, name: str, span: Span | None, facts: Mapping[str, object]) -> None:
        if span is not None:
            self._bars.append(_Bar(track, name, span, facts))

    def write(self, watched: Span) -> str:
        """Write what lies within a stretch of time in Chrome's trace event format, in microseconds from its beginning."""
        bars = [bar for bar in self._bars.copy() if bar.span.ended_at >= watched.began_at and bar.span.began_at <= watched.ended_at]
        return json.dumps({"traceEvents": list(_events(bars, watched.began_at)), "displayTimeUnit": "ms"})


def _events(bars: Iterable[_Bar], began: float) -> Iterator[dict[str, object]]:
    tracks: dict[str, int] = {track: number for number, track in enumerate(REQUEST_TRACKS, start=1)}
    for number, bar in enumerate(bars):
        start, length = (bar.span.began_at - began) * 1e6, max(0.0, bar.span.seconds) * 1e6
        tid = tracks.setdefault(bar.track, len(tracks) + 1)
        event: dict[str, object] = {"name": bar.name, "cat": bar.track, "pid": 1, "tid": tid, "ts": start}
        if bar.track in REQUEST_TRACKS:
            # Requests overlap on their track, which only asynchronous events may.
            yield event | {"ph": "b", "id": number, "args": dict(bar.facts)}
            yield event | {"ph": "e", "id": number, "ts": start + length}
        else:
            yield event | {"ph": "X", "dur": length, "args": dict(bar.facts)}
    yield {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "twinfer"}}
    for track, tid in tracks.items():
        yield {"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": track}}

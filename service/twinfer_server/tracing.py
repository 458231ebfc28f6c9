"""Traces for OpenTelemetry, set up by its own `OTEL_*` variables; docs/operate.md says which spans there are.

Only this module knows OpenTelemetry. Spans are made of times that are recorded anyway, and for the calls of sampled traces alone.
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points, version

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from .engine import BatchRecord, MemberRecord, Span, TracedRequest
from .errors import quote
from .settings import InvalidSettings
from .types import Facts, State, TraceSpan

PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
"""The entry points of the exporters, by OTEL_EXPORTER_OTLP_PROTOCOL."""
SERVER_FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
"""The codes with which a server's span is an error, by the semantic conventions for gRPC; the others are the caller's."""
CLOSE_SECONDS = 3.0

Metadata = Iterable[tuple[str, str | bytes]]


class Tracing:
    """Begins the spans of calls, and makes those of what batches did. Any thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Export in batches, on a thread of its own; what is sampled, and what spans hold at most, the variables say."""
        own = {SERVICE_NAME: "twinfer", SERVICE_VERSION: version("twinfer")}
        given = OTELResourceDetector().detect().attributes  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        self._provider = TracerProvider(resource=Resource.create({**own, **given}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("twinfer", version("twinfer"))
        self._fields = propagate.get_global_textmap().fields
        self._attributes: dict[str, Mapping[str, str]] = {}

    def begin_call(self, method: str, metadata: Metadata, began_at: float) -> "CallSpan | None":
        """Begin the span of a call, in the trace that its caller's metadata names; None where it is not sampled.

        Metadata that cannot be read, a malformed `traceparent` for instance, begin a new trace.
        """
        attributes = self._attributes.get(method)
        if attributes is None:
            attributes = self._attributes[method] = {"rpc.system.name": "grpc", "rpc.method": method}
        start, parent = _epoch_nanos(began_at), self._extract(metadata)
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, attributes, start_time=start)
        return CallSpan(self._tracer, span) if span.is_recording() else None

    def _extract(self, metadata: Metadata) -> context.Context:
        carrier: dict[str, str] = {}
        for key, value in metadata:
            if key in self._fields and isinstance(value, str):  # what comes more than once is one list, as in HTTP
                carrier[key] = f"{carrier[key]},{value}" if key in carrier else value
        return propagate.extract(carrier, context.Context()) if carrier else context.Context()

    def on_batch(self, record: BatchRecord) -> None:
        """Make the spans of a batch that has completed, for each of its requests whose trace is recorded."""
        for request in record.traced:
            write_batch(request, record)

    def close(self) -> None:
        """Export what there is, for a moment at most: a receiver that is gone is tried again and again."""
        closing = threading.Thread(target=self._provider.shutdown, name="export", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class RecordedSpan:
    """A span of a sampled trace."""

    __slots__ = ("_span", "_text", "_tracer", "trace_id")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        """Take over a span that has begun."""
        self._tracer, self._span, self._text = tracer, span, ""
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def begin(self, name: str, began_at: float) -> "RecordedSpan":
        """Begin a span inside this one."""
        inside = trace.set_span_in_context(self._span, context.Context())
        return RecordedSpan(self._tracer, self._tracer.start_span(name, inside, start_time=_epoch_nanos(began_at)))

    def note(self, facts: Facts) -> None:
        """Add to what the span says of itself."""
        self._span.set_attributes(facts)

    def note_error(self, kind: str, text: str = "") -> None:
        """Say that what the span stands for has failed."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, text or kind))

    def end(self, ended_at: float) -> None:
        """End it, and hand it on to be exported."""
        self._span.end(_epoch_nanos(ended_at))


class CallSpan(RecordedSpan):
    """The span of a call, by the semantic conventions for gRPC servers: its status is that of the call, whatever a request met."""

    __slots__ = ()

    def note_error(self, kind: str, text: str = "") -> None:
        """Note the reason of what is going to be the call's status."""
        self._text = text
        self._span.set_attribute("twinfer.reason", kind)

    def end_call(self, code: str, ended_at: float) -> None:
        """End it, with the name of its status code."""
        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self._span.set_attribute("error.type", code)
        if code in SERVER_FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, self._text))
        self.end(ended_at)


def write_batch(request: TracedRequest, record: BatchRecord) -> None:
    """Make the spans of what a batch did for one of its requests. A batch is shared: its number says who shared it."""
    facts: dict[str, str | int | float] = {
        "twinfer.batch.number": record.number, "twinfer.batch.size": record.batch_size, "twinfer.batch.execution": record.execution,
    }  # fmt: skip
    if record.overlap_ratio is not None:
        facts["twinfer.batch.overlap_ratio"] = record.overlap_ratio
    for member in record.members:
        if member.name in request.states:
            _write_member(request.span, member, request.states[member.name], record.whole, facts)
    if record.fusion is not None:
        _write(request.span, "fusion", record.fusion, facts | {"twinfer.fusion.version": record.fusion_version})


def _write_member(
    within: TraceSpan, member: MemberRecord, state: State, whole: Span, facts: Mapping[str, str | int | float]
) -> None:
    """Make a member's span; where the member's own time cannot be seen, it is the whole batch's."""
    own: dict[str, str | int | float] = {
        "twinfer.member.name": member.name, "twinfer.member.state": state.name, "twinfer.member.cuda_graph": member.used_cuda_graph,
        "twinfer.member.bucket.samples": member.bucket.samples, "twinfer.member.bucket.tokens": member.bucket.tokens,
        "twinfer.member.solo_latency_seconds": member.solo_seconds,
    }  # fmt: skip
    error = f"MEMBER_{state.name}" if state in (State.FAILED, State.LATE) else ""
    _write(within, f"member {member.name}", member.span or whole, {**facts, **own}, error)


def _write(within: TraceSpan, name: str, span: Span, facts: Facts, error: str = "") -> None:
    written = within.begin(name, span.began_at)
    written.note(facts)
    if error:
        written.note_error(error)
    written.end(span.ended_at)


def _epoch_nanos(monotonic_seconds: float) -> int:
    """Return a time of `time.monotonic()` as OpenTelemetry has it."""
    return time.time_ns() - time.monotonic_ns() + round(monotonic_seconds * 1e9)


# --- what the variables ask for ---------------------------------------------------------------------------------------


def start_tracing() -> Tracing:
    """Set up what the variables ask for; raises InvalidSettings for an exporter or a protocol that is not there."""
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "otlp":
        keys = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        key, protocol = next(((key, value) for key in keys if (value := os.environ.get(key, "").strip())), (keys[1], "grpc"))
        if protocol not in PROTOCOLS:
            raise InvalidSettings(f"{key}: found {quote(protocol)}; allowed: {', '.join(PROTOCOLS)}")
        name = PROTOCOLS[protocol]
    exporters = {entry.name: entry for entry in entry_points(group="opentelemetry_traces_exporter")}
    if name not in exporters:
        known = sorted({"otlp", "none", *exporters})
        raise InvalidSettings(f"OTEL_TRACES_EXPORTER: found {quote(name)}; allowed: {', '.join(known)}")
    return Tracing(exporters[name].load()())

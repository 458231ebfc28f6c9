"""A real receiver of OTLP over gRPC, in the test's process."""

import queue
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.calls import PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it was received; ids in hexadecimal digits, times in nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    is_server: bool
    start: int
    end: int
    is_error: bool
    attributes: Mapping[str, Any]
    service: str


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def _read(span: trace_pb2.Span, service: str) -> Received:
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        is_server=span.kind == trace_pb2.Span.SPAN_KIND_SERVER,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes={pair.key: _plain(pair.value) for pair in span.attributes},
        service=service,
    )


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it receives."""

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[Received] = []
        self._arrivals: queue.SimpleQueue[list[Received]] = queue.SimpleQueue()

    def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:
        for part in request.resource_spans:
            service = next(_plain(pair.value) for pair in part.resource.attributes if pair.key == "service.name")
            self._arrivals.put([_read(span, service) for scope in part.scope_spans for span in scope.spans])
        return pb.ExportTraceServiceResponse()

    def wait_for(self, is_wanted: Callable[[Received], bool], count: int = 1) -> list[Received]:
        """Return the wanted spans, once there are so many."""
        while len(found := [span for span in self.spans if is_wanted(span)]) < count:
            try:
                self.spans += self._arrivals.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                names = [(span.name, span.trace_id[:4]) for span in self.spans]
                raise AssertionError(f"found {len(found)} of {count} spans among {names}") from None
        return found

    def wait_for_trace(self, trace_id: str, *names: str) -> dict[str, Received]:
        """Return the spans of a trace, by name, once those with these names have come."""
        for name in names:
            self.wait_for(lambda span, name=name: span.trace_id == trace_id and span.name == name)  # type: ignore[misc]
        return {span.name: span for span in self.spans if span.trace_id == trace_id}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Receive spans on a free port."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()

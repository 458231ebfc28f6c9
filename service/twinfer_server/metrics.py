"""Metrics for Prometheus, on a listener of their own; docs/metrics.md lists them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from .engine import BatchRecord, BreakerReading, BreakerState, Engine
from .errors import TwinferError
from .rpc import PortTaken
from .standard_streams import count_dropped
from .types import Response, State

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts what an engine does. Requests are noted on the event loop, batches on the threads that complete them."""

    def __init__(self, members: Sequence[str]) -> None:
        """Begin at 0, in a registry of its own; `members` are the names, in the order in which responses list them."""
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"twinfer_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"twinfer_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"twinfer_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests that have ended, with a response or an error.")
        self._failures = counter("request_failures", "Requests that ended with an error, by its code and reason.", "code", "reason")
        self._degraded = counter("degraded_responses", "Responses without a member that should have taken part.")
        self._duration = histogram("request_duration_seconds", "From a request's arrival to its response.")
        stages = histogram("stage_duration_seconds", "Where the time of answered requests went.", "stage")
        self._decode, self._queue, self._device = (stages.labels(stage) for stage in ("decode", "queue", "device"))
        states = counter("member_states", "Responses, by what became of the member.", "member", "state")
        self._states = [{state: states.labels(name, state.name) for state in State} for name in members]
        self._batches = counter("batches", "Batches completed.", "execution")
        self._batch_size = histogram("batch_size", "Requests per batch.", buckets=REQUESTS)
        ratio = "Sum of the members' solo latencies over the time from fork to join, per batch of several members; 1 is no gain."
        self._overlap = histogram("overlap_ratio", ratio, buckets=RATIOS)
        wait = "The longest that a request of the batch waited although it was ready, as streams or staging buffers were busy."
        self._buffer_wait = histogram("buffer_wait_seconds", wait)
        self._compute = histogram("member_compute_seconds", "A member's time in a batch, beside whatever else ran.", "member")
        solo = "A member's time at the batch's bucket with nothing beside it, as measured at warm-up; once for each batch."
        self._solo = histogram("member_solo_latency_seconds", solo, "member")
        graphs = "Members' parts in batches: hit where a CUDA graph was replayed, else miss."
        self._graphs = counter("cuda_graph", graphs, "member", "result")
        self._breaker = gauge("member_breaker_state", "1 for the state of the member's circuit breaker, else 0.", "member", "state")
        self._opened = counter("member_breaker_opened", "Times that the member's circuit breaker opened.", "member")
        self._opened_told: dict[str, int] = {}
        self._waiting = gauge("requests_waiting", "Requests that wait for a batch.")
        self._in_flight = gauge("requests_in_flight", "Requests being decoded, waiting or computed.")
        self._bytes = gauge("request_bytes_in_flight", "Bytes of the requests in flight.")
        registry.register(_DroppedRecords())

    @contextmanager
    def listening(self, address: str) -> Iterator[str]:
        """Serve over HTTP on HOST:PORT, on a daemon thread; yields HOST:PORT as it came to be. Raises PortTaken."""
        host, _, port = address.rpartition(":")
        try:
            server, _ = start_http_server(int(port), host.strip("[]"), registry=self._registry)
        except OSError as error:
            raise PortTaken(f"cannot listen on {address} for metrics: {error.strerror}") from None
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def watch(self, engine: Engine) -> None:
        """Count what `engine` does from now on."""
        self._waiting.set_function(lambda: engine.requests_waiting)
        self._in_flight.set_function(lambda: engine.requests_in_flight)
        self._bytes.set_function(lambda: engine.bytes_in_flight)
        engine.listen(self)

    def on_response(self, response: Response, seconds: float) -> None:
        """Count a response that was written so long after the request's arrival."""
        self._requests.inc()
        self._duration.observe(seconds)
        timings = response.timings
        self._decode.observe(timings.decode_seconds)
        self._queue.observe(timings.queue_seconds)
        self._device.observe(timings.device_seconds)
        for counters, member in zip(self._states, response.members, strict=True):
            counters[member.state].inc()
        if response.is_degraded:
            self._degraded.inc()

    def on_failure(self, error: TwinferError) -> None:
        """Count a request that ended with an error."""
        self._requests.inc()
        self._failures.labels(error.code.name, error.reason).inc()

    def on_batch(self, record: BatchRecord) -> None:
        """Count a batch that has completed."""
        self._batches.labels(record.execution).inc()
        self._batch_size.observe(record.batch_size)
        self._buffer_wait.observe(record.buffer_wait_seconds)
        if record.overlap_ratio is not None:
            self._overlap.observe(record.overlap_ratio)
        for member in record.members:
            self._solo.labels(member.name).observe(member.solo_seconds)
            self._graphs.labels(member.name, "hit" if member.used_cuda_graph else "miss").inc()
            if member.span is not None and not member.has_failed:
                self._compute.labels(member.name).observe(member.span.seconds)

    def on_breaker(self, member: str, reading: BreakerReading, times_opened: int) -> None:
        """Note the state of a member's circuit breaker, and how often it has opened so far."""
        for state in BreakerState:
            self._breaker.labels(member, state.name).set(state is reading.state)
        self._opened.labels(member).inc(times_opened - self._opened_told.get(member, 0))
        self._opened_told[member] = times_opened


class _DroppedRecords(Collector):
    """What standard error could not take of the log."""

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("twinfer_log_records_dropped", "Records of the log that could not be written.", count_dropped())

"""Metrics for Prometheus, on a listener of their own; docs/metrics.md lists them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import product

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram, Metric, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from .device import Device
from .engine import BatchRecord, BreakerReading, BreakerState, Engine
from .errors import TwinferError
from .rpc import Certificates, PortTaken
from .standard_streams import count_dropped
from .types import ANONYMOUS, DEGRADING, Response, State

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Outcomes(Collector):
    """Counts responses by what became of all their members together: one count for each response, taken apart when it is read."""

    def __init__(self) -> None:
        self.members: Sequence[str] = ()
        self._counts: Counter[tuple[State, ...]] = Counter()

    def add(self, states: tuple[State, ...]) -> None:
        """Count a response; event loop only."""
        self._counts[states] += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the counts by member and state, and those of degraded responses."""
        counts = self._counts.copy()
        states = CounterMetricFamily(
            "twinfer_member_states", "Responses, by what became of the member.", labels=("member", "state")
        )
        for (index, name), state in product(enumerate(self.members), State):
            states.add_metric((name, state.name), sum(number for found, number in counts.items() if found[index] is state))
        degraded = sum(number for found, number in counts.items() if not set(DEGRADING).isdisjoint(found))
        text = "Responses without a member that should have taken part."
        yield states
        yield CounterMetricFamily("twinfer_degraded_responses", text, value=degraded)


class Metrics:
    """Counts what an engine does. Requests are noted on the event loop, batches on the threads that complete them."""

    def __init__(self, members: Sequence[str] = ()) -> None:
        """Begin at 0, in a registry of its own; `members` are the names, in the order in which responses list them."""
        self._registry = CollectorRegistry()
        self._declare_requests()
        self._declare_server()
        self.name_members(members)

    def _counter(self, name: str, text: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(f"twinfer_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"twinfer_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"twinfer_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _declare_requests(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._requests = counter("requests", "Requests that have ended, with a response or an error.")
        self._failures = counter("request_failures", "Requests that ended with an error, by its code and reason.", "code", "reason")
        self._by_caller = counter("caller_requests", "Requests, and calls that came to none, by caller and code.", "caller", "code")
        self._duration = histogram("request_duration_seconds", "From a request's arrival to its response.")
        stages = histogram("stage_duration_seconds", "Where the time of answered requests went.", "stage")
        self._decode, self._queue, self._device = (stages.labels(stage) for stage in ("decode", "queue", "device"))
        self._outcomes = _Outcomes()
        self._registry.register(self._outcomes)
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
        retries = "Parts of batches, and own samples, that the member computed again after it had raised on a whole batch."
        self._retries = counter("member_retries", retries, "member")
        self._fusion = histogram(
            "fusion_duration_seconds", "From the last member's end to the fused result on the host, per batch."
        )
        self._fusion_version = gauge("fusion_version", "The version of the fusion that batches are fused by.")
        self._breaker = gauge("member_breaker_state", "1 for the state of the member's circuit breaker, else 0.", "member", "state")
        self._opened = counter("member_breaker_opened", "Times that the member's circuit breaker opened.", "member")
        self._opened_told: dict[str, int] = {}
        self._waiting = gauge("requests_waiting", "Requests that wait for a batch.")
        self._in_flight = gauge("requests_in_flight", "Requests being decoded, waiting or computed.")
        self._limit = gauge("requests_in_flight_limit", "Requests in flight beyond which further ones are refused.")
        self._bytes = gauge("request_bytes_in_flight", "Bytes of the requests in flight.")

    def _declare_server(self) -> None:
        gauge = self._gauge
        ProcessCollector(registry=self._registry)
        self._registry.register(_DroppedRecords())
        self._ready = gauge("ready", "1 while health says SERVING, else 0.")
        self._info = gauge("info", "1, with what is served by which version.", "version", "ensemble", "ensemble_version", "device")
        own = "A member's part of the device's memory, as measured at warm-up; on a CPU it is the process's own."
        self._member_memory = gauge("member_memory_bytes", own, "member")
        use = "The device's memory: total, used by all processes, allocated to tensors; nothing on a CPU."
        self._device_memory = gauge("device_memory_bytes", use, "device", "kind")
        busy = "The part of the last moments in which the GPU computed, where NVML says so."
        self._utilization = gauge("device_utilization_ratio", busy, "device")
        # OpenTelemetry's rpc.server.call.duration, as its name and attributes are written for Prometheus.
        names, text = ("rpc_system_name", "rpc_method", "rpc_response_status_code"), "From a call's beginning to its status."
        self._calls = Histogram("rpc_server_call_duration_seconds", text, names, buckets=SECONDS, registry=self._registry)
        self._call: dict[tuple[str, str], Histogram] = {}

    def name_members(self, members: Sequence[str]) -> None:
        """Have what becomes of each member counted from 0; the names are in the order in which responses list them."""
        for name, result in product(members, ("hit", "miss")):
            self._graphs.labels(name, result)
        self._outcomes.members = members

    @contextmanager
    def listening(self, address: str, certificates: Certificates | None = None) -> Iterator[str]:
        """Serve over HTTP, or HTTPS with certificates, on HOST:PORT, on daemon threads; yields HOST:PORT as it came to be.

        Raises PortTaken.
        """
        host, _, port = address.rpartition(":")
        try:
            options = certificates.for_http_server() if certificates else {}
            server, _ = start_http_server(int(port), host.strip("[]"), registry=self._registry, **options)
        except OSError as error:
            raise PortTaken(f"cannot listen on {address} for metrics: {error.strerror}") from None
        if certificates:
            certificates.renew_http_server(server)
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def watch(self, engine: Engine) -> None:
        """Count what `engine` does from now on."""
        ensemble = engine.ensemble
        self.name_members([member.name for member in ensemble.members])
        self._waiting.set_function(lambda: engine.requests_waiting)
        self._in_flight.set_function(lambda: engine.requests_in_flight)
        self._limit.set(engine.settings.max_in_flight_requests)
        self._bytes.set_function(lambda: engine.bytes_in_flight)
        self._fusion_version.set_function(lambda: ensemble.fusion.number)
        self._info.labels(version("twinfer"), ensemble.spec.name, ensemble.spec.version, ensemble.device.torch_device).set(1)
        for name, memory in ensemble.memory.items():
            self._member_memory.labels(name).set(memory.total)
        for device in {member.device.torch_device: member.device for member in ensemble.members}.values():
            self._watch_device(device)
        engine.listen(self)

    def watch_health(self, is_serving: Callable[[], bool]) -> None:
        """Ask `is_serving` whether health says SERVING, at every scrape."""
        self._ready.set_function(is_serving)

    def _watch_device(self, device: Device) -> None:
        name = str(device.torch_device)
        for kind in device.memory_use():
            self._device_memory.labels(name, kind).set_function(partial(_read_memory, device, kind))
        if device.utilization() is not None:
            self._utilization.labels(name).set_function(partial(_read_utilization, device))

    def on_call(self, method: str, code: str, seconds: float, trace_id: str = "") -> None:
        """Count a call that has ended with the status code `code`, by its name."""
        call = self._call.get((method, code))
        if call is None:
            call = self._call[method, code] = self._calls.labels("grpc", method, code)
        call.observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def on_response(self, response: Response, seconds: float, trace_id: str = "") -> None:
        """Count a response that was written so long after the request's arrival; `trace_id` is an example for its time."""
        self._requests.inc()
        self._duration.observe(seconds, {"trace_id": trace_id} if trace_id else None)
        timings = response.timings
        self._decode.observe(timings.decode_seconds)
        self._queue.observe(timings.queue_seconds)
        self._device.observe(timings.device_seconds)
        self._outcomes.add(tuple([member.state for member in response.members]))

    def on_failure(self, error: TwinferError) -> None:
        """Count a request that ended with an error."""
        self._requests.inc()
        self._failures.labels(error.code.name, error.reason).inc()

    def on_end(self, caller: str, code: str) -> None:
        """Count a request, or a call that came to none, for its caller; names are those of `auth_file`, so there are few."""
        self._by_caller.labels(caller or ANONYMOUS, code).inc()

    def on_batch(self, record: BatchRecord) -> None:
        """Count a batch that has completed."""
        self._batches.labels(record.execution).inc()
        self._batch_size.observe(record.batch_size)
        self._buffer_wait.observe(record.buffer_wait_seconds)
        if record.overlap_ratio is not None:
            self._overlap.observe(record.overlap_ratio)
        if record.fusion is not None:
            self._fusion.observe(record.fusion.seconds)
        for member in record.members:
            self._solo.labels(member.name).observe(member.solo_seconds)
            self._graphs.labels(member.name, "hit" if member.used_cuda_graph else "miss").inc()
            self._retries.labels(member.name).inc(member.retries)
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


def _read_memory(device: Device, kind: str) -> float:
    return device.memory_use().get(kind, math.nan)


def _read_utilization(device: Device) -> float:
    utilization = device.utilization()
    return math.nan if utilization is None else utilization

"""Metrics for Prometheus, on a listener of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from .engine import FlightRecord, LocalEngine
from .errors import TwinferError
from .rows import Answer, State

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts what an engine does. Per flight where it can be; thread-safe, as prometheus_client is."""

    def __init__(self, engine: LocalEngine) -> None:
        """Listen to `engine` from now on."""
        self.registry = CollectorRegistry()
        registry = self.registry
        self._flights = Counter("twinfer_flights", "Flights landed, by plan.", ["plan"], registry=registry)
        self._flight_rows = Histogram("twinfer_flight_rows", "Rows per flight.", buckets=ROWS, registry=registry)
        self._overlap = Histogram(
            "twinfer_overlap_ratio",
            "Sum of the members' alone times over the time from fork to join; 1 is no gain.",
            buckets=RATIOS,
            registry=registry,
        )
        self._slot_wait = Histogram(
            "twinfer_slot_wait_seconds", "Time that ready rows waited for want of a slot.", buckets=SECONDS, registry=registry
        )
        self._device = Histogram(
            "twinfer_device_seconds", "From launch to landing of a flight.", buckets=SECONDS, registry=registry
        )
        self._member = Histogram(
            "twinfer_member_device_seconds",
            "A member's time in a flight, beside whatever else ran.",
            ["member"],
            buckets=SECONDS,
            registry=registry,
        )
        self._alone = Histogram(
            "twinfer_member_alone_seconds",
            "A member's time at the flight's size with nothing beside it, as measured at warm-up.",
            ["member"],
            buckets=SECONDS,
            registry=registry,
        )
        self._captures = Counter(
            "twinfer_captures",
            "Members' parts in flights, by whether a graph was replayed.",
            ["member", "result"],
            registry=registry,
        )
        self._states = Counter(
            "twinfer_member_rows", "Rows answered, by what became of the member.", ["member", "state"], registry=registry
        )
        self._degraded = Counter("twinfer_degraded_answers", "Answers without a member that should be there.", registry=registry)
        self._rows = Counter("twinfer_rows", "Rows, by what they ended with.", ["reason"], registry=registry)
        self._stages = Histogram("twinfer_stage_seconds", "Where rows' time went.", ["stage"], buckets=SECONDS, registry=registry)
        # A row has little time for metrics: what is the same for every row is looked up once.
        self._decode, self._queue = self._stages.labels("decode"), self._stages.labels("queue")
        self._state_counters: dict[tuple[str, State], Counter] = {}
        in_hand = Gauge("twinfer_rows_in_hand", "Rows waiting or in the air.", registry=registry)
        in_hand.set_function(lambda: engine.rows_in_hand)
        bytes_in_hand = Gauge("twinfer_bytes_in_hand", "Bytes of the requests in hand.", registry=registry)
        bytes_in_hand.set_function(lambda: engine.bytes_in_hand)
        self._names = [member.name for member in engine.description.members]
        engine.listen(self._on_flight)
        engine.on_end = self._on_end

    def _on_flight(self, record: FlightRecord) -> None:
        self._flights.labels(record.plan).inc()
        self._flight_rows.observe(record.rows)
        self._slot_wait.observe(record.slot_wait_seconds)
        self._device.observe(record.landed_at - record.launched_at)
        if record.overlap_ratio is not None:
            self._overlap.observe(record.overlap_ratio)
        for member in record.members:
            self._alone.labels(member.name).observe(member.alone_seconds)
            self._captures.labels(member.name, "hit" if member.was_captured else "miss").inc()
            if member.seconds is not None:
                self._member.labels(member.name).observe(member.seconds)

    def _on_end(self, ended: Answer | TwinferError) -> None:
        if isinstance(ended, TwinferError):
            self._rows.labels(ended.reason.name).inc()
            return
        self._rows.labels("OK").inc()
        self._decode.observe(ended.timings.decode_seconds)
        self._queue.observe(ended.timings.queue_seconds)
        for name, part in zip(self._names, ended.members, strict=True):
            self._count_state(name, part.state)
        if ended.is_degraded:
            self._degraded.inc()

    def _count_state(self, name: str, state: State) -> None:
        counter = self._state_counters.get((name, state))
        if counter is None:
            counter = self._state_counters[name, state] = self._states.labels(name, state.name)
        counter.inc()


def serve_metrics(metrics: Metrics, address: str) -> str:
    """Serve metrics over HTTP on HOST:PORT, on a daemon thread; gives HOST:PORT as it came to be. Raises OSError."""
    host, _, port = address.rpartition(":")
    server, _ = start_http_server(int(port), host.strip("[]"), registry=metrics.registry)
    return f"{host}:{server.server_port}"

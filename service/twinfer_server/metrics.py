"""Metrics for Prometheus, on a listener of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from .engine import Engine, FlightRecord, Switch
from .errors import TwinferError
from .row_book import RowBook
from .rpc import PortTaken
from .types import Response

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Keeps the books of an engine, of flights and members here, of rows in a book of their own."""

    def __init__(self) -> None:
        """Begin at 0, in a registry of its own."""
        self._registry = registry = CollectorRegistry()

        def count(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"twinfer_{name}", text, labels, registry=registry)

        def spread(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"twinfer_{name}", text, labels, buckets=buckets, registry=registry)

        self._flights = count("flights", "Flights landed, by plan.", "execution")
        self._flight_rows = spread("batch_size", "Rows per flight.", buckets=ROWS)
        self._overlap = spread(
            "overlap_ratio",
            "Sum of the members' alone times over the time from fork to join, per flight of several members; 1 is no gain.",
            buckets=RATIOS,
        )
        self._slot_wait = spread(
            "buffer_wait_seconds",
            "The longest that a row of the flight waited although it was ready, for lanes or slots were busy.",
        )
        self._device = spread("member_device_seconds", "A member's time in a flight, beside whatever else ran.", "member")
        self._alone = spread(
            "member_alone_seconds", "A member's time at the flight's size with nothing beside it, as of warm-up.", "member"
        )
        self._captures = count(
            "captures", "Members' parts in flights: hit where a graph was replayed, else miss.", "member", "result"
        )
        self._switches = Gauge(
            "twinfer_member_switch", "1 for how a member is switched now, else 0.", ("member", "switch"), registry=registry
        )
        self._trips = count("member_trips", "Times that a member was switched off because it kept failing or stalled.", "member")
        self._trips_told: dict[str, int] = {}
        self._waiting = Gauge("twinfer_rows_waiting", "Rows that wait for a flight.", registry=registry)
        self._in_hand = Gauge("twinfer_rows_in_hand", "Rows being decoded, waiting or in the air.", registry=registry)
        self._bytes = Gauge("twinfer_bytes_in_hand", "Bytes of the requests in hand.", registry=registry)
        self._book = RowBook(SECONDS)
        registry.register(self._book)

    @contextmanager
    def listening(self, address: str) -> Iterator[str]:
        """Serve over HTTP on HOST:PORT, on a daemon thread; gives HOST:PORT as it came to be. Raises PortTaken."""
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
        """Keep the books of `engine` from now on."""
        self._waiting.set_function(lambda: engine.rows_waiting)
        self._in_hand.set_function(lambda: engine.rows_in_hand)
        self._bytes.set_function(lambda: engine.bytes_in_hand)
        self._book.members = [member.name for member in engine.description.members]
        engine.listen(self)

    def on_flight(self, record: FlightRecord) -> None:
        """Count a landing."""
        self._flights.labels(record.execution).inc()
        self._flight_rows.observe(record.rows)
        self._slot_wait.observe(record.buffer_wait_seconds)
        if record.overlap_ratio is not None:
            self._overlap.observe(record.overlap_ratio)
        for member in record.members:
            self._alone.labels(member.name).observe(member.solo_seconds)
            self._captures.labels(member.name, "hit" if member.used_cuda_graph else "miss").inc()
            if member.span is not None and not member.has_failed:
                self._device.labels(member.name).observe(member.span.seconds)

    def on_answer(self, answer: Response, seconds: float) -> None:
        """Count an answered row."""
        self._book.note_answer(answer, seconds)

    def on_switch(self, member: str, switch: Switch, trips: int) -> None:
        """Note how a member is switched."""
        for other in Switch:
            self._switches.labels(member, other.name).set(other is switch)
        self._trips.labels(member).inc(trips - self._trips_told.get(member, 0))
        self._trips_told[member] = trips

    def on_failure(self, error: TwinferError) -> None:
        """Count a row that ended with an error."""
        self._book.note_failure(error)

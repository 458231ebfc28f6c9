"""Where the time of rows goes: the one histogram that every row is noted in, kept without locks."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from .rows import Timings

STAGES = ("decode", "queue", "device", "total")


class StageTimes(Collector):
    """Seconds by stage. One thread notes, and any thread collects: it may see a row half noted, never a count go down."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin at 0; `bounds` are the buckets' upper ends, in seconds."""
        self._bounds = tuple(bounds)
        self._counts = [[0] * (len(bounds) + 1) for _ in STAGES]
        self._sums = [0.0] * len(STAGES)

    def note(self, timings: Timings, total_seconds: float) -> None:
        """Note an answered row."""
        parts = (timings.decode_seconds, timings.queue_seconds, timings.device_seconds, total_seconds)
        for stage, seconds in enumerate(parts):
            self._counts[stage][bisect_left(self._bounds, seconds)] += 1
            self._sums[stage] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the histogram as Prometheus wants it: each bucket with all that is below."""
        text = "Where the time of answered rows went; total is from arrival to reply."
        family = HistogramMetricFamily("twinfer_stage_seconds", text, labels=("stage",))
        ends = [*map(str, map(float, self._bounds)), "+Inf"]
        for stage, counts, seconds in zip(STAGES, self._counts, self._sums, strict=True):
            family.add_metric((stage,), list(zip(ends, accumulate(counts), strict=True)), seconds)
        yield family

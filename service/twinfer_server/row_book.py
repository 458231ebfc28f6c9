"""The book of rows: the metrics that every row is noted in, kept without locks."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .errors import TwinferError
from .types import DEGRADING, Response, State

STAGES = ("decode", "queue", "device", "total")


class RowBook(Collector):
    """Counts rows by how they ended. One thread notes; any thread collects, and may see a row half noted, never a count go down."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin at 0; `bounds` are the upper ends of the buckets of seconds."""
        self.members: Sequence[str] = ()
        """The names, in the order in which answers list them."""
        self._bounds = tuple(bounds)
        self._counts = [[0] * (len(bounds) + 1) for _ in STAGES]
        self._sums = [0.0] * len(STAGES)
        self._answered: Counter[bytes] = Counter()
        """By what became of the members: a state in each byte."""
        self._failed: Counter[tuple[str, str]] = Counter()

    def note_answer(self, answer: Response, total_seconds: float) -> None:
        """Note a row that was answered so long after its arrival."""
        timings = answer.timings
        parts = (timings.decode_seconds, timings.queue_seconds, timings.device_seconds, total_seconds)
        for counts, seconds in zip(self._counts, parts, strict=True):
            counts[bisect_left(self._bounds, seconds)] += 1
        self._sums = [before + seconds for before, seconds in zip(self._sums, parts, strict=True)]
        self._answered[bytes([member.state for member in answer.members])] += 1

    def note_failure(self, error: TwinferError) -> None:
        """Note a row that ended with an error."""
        self._failed[error.code.name, error.reason.name] += 1

    def collect(self) -> Iterator[Metric]:
        """Give the counts as Prometheus wants them: of a histogram each bucket with all that is below."""
        answered = dict(self._answered)
        text = "Rows, by the status code and the reason that they ended with."
        rows = CounterMetricFamily("twinfer_rows", text, labels=("code", "reason"))
        rows.add_metric(("OK", ""), sum(answered.values()))
        for labels, count in dict(self._failed).items():
            rows.add_metric(labels, count)
        yield rows
        text = "Rows answered, by what became of the member."
        members = CounterMetricFamily("twinfer_member_rows", text, labels=("member", "state"))
        for place, name in enumerate(self.members):
            for state in State:
                members.add_metric((name, state.name), sum(count for states, count in answered.items() if states[place] == state))
        yield members
        degraded = sum(count for states, count in answered.items() if any(state in DEGRADING for state in states))
        text = "Answers without a member that should have taken part."
        yield CounterMetricFamily("twinfer_degraded_answers", text, degraded)
        text = "Where the time of answered rows went; total is from arrival to reply."
        times = HistogramMetricFamily("twinfer_stage_seconds", text, labels=("stage",))
        ends = [*map(str, map(float, self._bounds)), "+Inf"]
        for stage, counts, seconds in zip(STAGES, self._counts, self._sums, strict=True):
            times.add_metric((stage,), list(zip(ends, accumulate(counts), strict=True)), seconds)
        yield times

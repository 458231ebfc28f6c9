"""What came of the requests of one stretch of time."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy

from twinfer.errors import Reason, TwinferError
from twinfer.results import Response

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
SPANS = ("decode_ms", "queue_ms", "device_ms", "total_ms")
"""Of the answers' timings."""
SATURATED = 0.85
"""The share of a core above which the event loop, which has one, is what limits the load."""
UNPUNCTUAL = 0.2
"""The part of the median latency above which it says too much of this side."""


@dataclass
class Tally:
    """Counts requests by what came of them. Latencies are those of answers; calls that fail are often the fastest."""

    # In seconds, in no order.
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    # By reason, or by code where a failure has no reason; and the text of the first one of each.
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    degraded: int = 0
    # Answers that were here before the time was over, whenever they were asked for.
    in_time: int = 0
    # Arrivals that found as many calls in flight as there may be.
    not_sent: int = 0
    seconds: float = 0.0
    loop_cpu_seconds: float = 0.0
    # By how much calls were begun after their time, because this side was busy; part of their latencies.
    begun_late_seconds: float = 0.0
    # Sums over the answers.
    batch_sizes: int = 0
    spans_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPANS, 0.0))

    def add_result(self, result: Response | TwinferError, seconds: float) -> None:
        """Count a failure, or an answer that took so long."""
        if isinstance(result, TwinferError):
            reason = result.code.name if result.reason is Reason.UNSPECIFIED else str(result.reason)
            self.errors[reason] += 1
            self.examples.setdefault(reason, result.text)
            return
        self.latencies.append(seconds)
        self.degraded += result.degraded
        self.batch_sizes += result.timings.batch_size
        for name in SPANS:
            self.spans_ms[name] += getattr(result.timings, name)

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return len(self.latencies)

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return self.errors.total()

    @property
    def is_clean(self) -> bool:
        """Whether every request was sent and answered."""
        return not (self.failed or self.not_sent)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def batch_size(self) -> float:
        """The mean size, over the answers, of the batches that they were computed in."""
        return self.batch_sizes / max(1, self.answered)

    @property
    def loop_share(self) -> float:
        """The share of the time that this side's event loop was busy, 0 to 1."""
        return self.loop_cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def begun_late_ms(self) -> float:
        """How long after its time a request was sent on average, in milliseconds."""
        return self.begun_late_seconds / max(1, self.answered + self.failed) * 1e3

    def milliseconds(self) -> dict[str, float]:
        """Return the latencies' percentiles; none where nothing was answered."""
        if not self.answered:
            return {}
        found = numpy.percentile(self.latencies, list(PERCENTILES.values()), method="inverted_cdf")
        return dict(zip(PERCENTILES, (found * 1e3).tolist(), strict=True))

    def server_milliseconds(self) -> dict[str, float]:
        """Return the mean of each span that the answers report; none where nothing was answered."""
        spans = self.spans_ms.items() if self.answered else ()
        return {name.removesuffix("_ms"): total / self.answered for name, total in spans}

    def warnings(self) -> list[str]:
        """Return what makes the figures say less than they seem to."""
        found = []
        if self.loop_share > SATURATED:
            found.append(f"this client is the limit: its event loop was busy {self.loop_share:.0%} of the time")
        if self.answered and self.begun_late_ms > UNPUNCTUAL * self.milliseconds()["p50"]:
            found.append(f"this client is late: calls began {self.begun_late_ms:.2f} ms after their time, a part of the latencies")
        if self.not_sent:
            found.append(f"{self.not_sent:,} arrivals were not sent: as many calls as allowed were in flight")
        return found

    def figures(self) -> dict[str, Any]:
        """Return everything as plain values."""
        names = ("seconds", "answered", "failed", "degraded", "not_sent", "batch_size", "begun_late_ms")
        return {name: getattr(self, name) for name in names} | {
            "requests_per_second": self.rate,
            "latency_ms": self.milliseconds(),
            "server_ms": self.server_milliseconds(),
            "errors": dict(self.errors),
            "error_examples": self.examples,
            "client_loop_share": self.loop_share,
            "warnings": self.warnings(),
        }

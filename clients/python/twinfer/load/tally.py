"""What came of the requests of one stretch of time."""

import math
from collections import Counter
from typing import Any

from google.protobuf.duration_pb2 import Duration
from hdrh.histogram import HdrHistogram

from twinfer.errors import Reason, TwinferError
from twinfer.v1 import ensemble_service_pb2

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
LONGEST_MICROSECONDS = 3_600_000_000
DIGITS = 3
"""Significant ones: a percentile is at most 0.1 % too high, and never too low."""
SPANS = ("decode", "queue", "device", "total")
"""Of the answers' timings."""
SUMS = (
    *("answered", "degraded", "wrong", "in_time", "not_sent"),
    *("seconds", "loop_cpu_seconds", "cpu_seconds", "begun_late_seconds"),
)
SATURATED = 0.85
"""The share of a core above which the event loop, which has one, is what limits the load."""
UNPUNCTUAL = 0.2
"""The part of the median latency above which it says too much of this side."""


class Tally:
    """Counts rows by what came of them. Latencies are those of answers; calls that fail are often the fastest."""

    def __init__(self) -> None:
        self.latencies = HdrHistogram(1, LONGEST_MICROSECONDS, DIGITS)
        # By reason, or by code where a failure has no reason.
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.answered = self.degraded = self.wrong = 0
        # Answers that were here before the time was over, whenever they were asked for.
        self.in_time = 0
        # Arrivals that found as many calls in flight as there may be.
        self.not_sent = 0
        self.seconds = self.loop_cpu_seconds = self.cpu_seconds = 0.0
        # By how much calls were begun after their time, because this side was busy; part of their latencies.
        self.begun_late_seconds = 0.0
        self._flight_rows = 0
        self._spans = dict.fromkeys(SPANS, 0)

    def add_answer(self, answer: ensemble_service_pb2.InferResponse, seconds: float, is_right: bool) -> None:
        """Count an answer that took so long."""
        self.latencies.record_value(min(max(1, math.ceil(seconds * 1e6)), LONGEST_MICROSECONDS))
        self.answered += 1
        self.degraded += answer.degraded
        self.wrong += not is_right
        self._flight_rows += answer.timings.batch_size
        for name in SPANS:
            span: Duration = getattr(answer.timings, name)
            self._spans[name] += span.seconds * 10**9 + span.nanos

    def add_error(self, error: TwinferError) -> None:
        """Count a failure."""
        reason = error.code.name if error.reason is Reason.UNSPECIFIED else str(error.reason)
        self.errors[reason] += 1
        self.examples.setdefault(reason, error.text)

    def add(self, other: "Tally") -> None:
        """Count what another tally has counted, too: one of the same load at another time."""
        self.latencies.add(other.latencies)
        self.errors.update(other.errors)
        self.examples = other.examples | self.examples
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._flight_rows += other._flight_rows
        for name in SPANS:
            self._spans[name] += other._spans[name]

    @property
    def failed(self) -> int:
        """How many rows failed."""
        return self.errors.total()

    @property
    def is_clean(self) -> bool:
        """Whether every row was sent, answered and, as far as that was looked at, right."""
        return not (self.failed or self.wrong or self.not_sent)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def loop_share(self) -> float:
        """How busy this side's event loop was, 0 to 1."""
        return self.loop_cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def begun_late_ms(self) -> float:
        """How long after its time a row was asked for on average, in milliseconds."""
        return self.begun_late_seconds / max(1, self.answered + self.failed) * 1e3

    def milliseconds(self) -> dict[str, float]:
        """Give the latencies' percentiles; none where nothing was answered."""
        if not self.answered:
            return {}
        found = self.latencies.get_percentile_to_value_dict(list(PERCENTILES))
        return {f"p{percentile:g}": found[percentile] / 1e3 for percentile in PERCENTILES} | {
            "max": self.latencies.get_max_value() / 1e3
        }

    def server_milliseconds(self) -> dict[str, float]:
        """Give the mean of each span that the answers report."""
        return {name: total / self.answered / 1e6 for name, total in self._spans.items()} if self.answered else {}

    def batch_size(self) -> float:
        """Give the mean, over the answers, of the rows that shared their flight."""
        return self._flight_rows / self.answered if self.answered else 0.0

    def warnings(self) -> list[str]:
        """Say what makes the figures say less than they seem to."""
        found = []
        if self.loop_share > SATURATED:
            found.append(f"this client is the limit: its event loop was busy {self.loop_share:.0%} of the time")
        if self.answered and self.begun_late_ms > UNPUNCTUAL * self.milliseconds()["p50"]:
            found.append(
                f"this client is late: calls began {self.begun_late_ms:.2f} ms after their time, which the latencies include"
            )
        if self.not_sent:
            found.append(f"{self.not_sent:,} arrivals were not sent: as many calls as allowed were in flight")
        return found

    def figures(self) -> dict[str, Any]:
        """Give everything as plain values. `latency_histogram` is HdrHistogram's own compressed form, in microseconds."""
        return {
            "seconds": self.seconds,
            "requests_per_second": self.rate,
            "latency_ms": self.milliseconds(),
            "answered": self.answered,
            "degraded": self.degraded,
            "wrong": self.wrong,
            "failed": self.failed,
            "errors": dict(self.errors),
            "error_examples": self.examples,
            "not_sent": self.not_sent,
            "batch_size": self.batch_size(),
            "server_ms": self.server_milliseconds(),
            "client_loop_share": self.loop_share,
            "client_cpu_cores": self.cpu_seconds / self.seconds if self.seconds else 0.0,
            "begun_late_ms": self.begun_late_ms,
            "warnings": self.warnings(),
            "latency_histogram": self.latencies.encode().decode(),
        }

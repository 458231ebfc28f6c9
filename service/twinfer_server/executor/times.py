"""What warm-up measured: how long members and flights take at each bucket, and the plan that was faster there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bucket import Bucket


@dataclass(frozen=True, slots=True)
class BucketTimes:
    """What warm-up measured for one bucket, in seconds: medians.

    `plan_seconds` is a flight of all members, by plan: from fork to join, or from launch to landing where one of the plans is
    `graph`, of which no part can be timed; `join_seconds` is from fork to join under the chosen plan; `solo_seconds` each member
    by itself, by plan.
    """

    bucket: Bucket
    execution: str
    plan_seconds: Mapping[str, float]
    join_seconds: float
    solo_seconds: Mapping[str, tuple[float, ...]]

    def scale_to(self, bucket: Bucket) -> "BucketTimes":
        """Reckon the times of a larger bucket of as many tokens from this one's."""
        factor = bucket.samples / self.bucket.samples
        return BucketTimes(
            bucket=bucket,
            execution=self.execution,
            plan_seconds={execution: seconds * factor for execution, seconds in self.plan_seconds.items()},
            join_seconds=self.join_seconds * factor,
            solo_seconds={execution: tuple(value * factor for value in values) for execution, values in self.solo_seconds.items()},
        )

    @property
    def overlap_ratio(self) -> float:
        """The sum of the alone times over the time from fork to join, under the chosen plan."""
        return sum(self.solo_seconds[self.execution]) / self.join_seconds


class TimesTable:
    """The measured buckets, to look up a plan or an expected time on the hot path."""

    def __init__(self, measured: Sequence[BucketTimes], serial_threads: int) -> None:
        """Index the measurements by their token count."""
        self.measured = tuple(measured)
        self.serial_threads = serial_threads
        self._tokens = sorted({times.bucket.tokens for times in measured})
        self._by_tokens = {
            tokens: sorted((times for times in measured if times.bucket.tokens == tokens), key=lambda times: times.bucket.samples)
            for tokens in self._tokens
        }
        self._alone: dict[tuple[str, int, Bucket], float] = {}

    def find(self, bucket: Bucket) -> BucketTimes | None:
        """Find what was measured at exactly this bucket."""
        return next((times for times in self.measured if times.bucket == bucket), None)

    def execution(self, rows: int, tokens: int) -> str:
        """Give the plan that was faster at the smallest bucket that holds `rows` and `tokens`."""
        column = self._by_tokens[self._column(tokens)]
        return next((times.execution for times in column if times.bucket.samples >= rows), column[-1].execution)

    def solo_seconds(self, execution: str, member: int, bucket: Bucket) -> float:
        """Give the alone time of a member at a bucket: between measured sizes on a straight line, beyond them in proportion."""
        key = (execution, member, bucket)
        if key not in self._alone:
            column = self._by_tokens[self._column(bucket.tokens)]
            sizes = [times.bucket.samples for times in column]
            # A plan that nobody measured flies beside a stuck member all the same.
            seconds = [times.solo_seconds.get(execution, times.solo_seconds[times.execution])[member] for times in column]
            self._alone[key] = float(np.interp(bucket.samples, sizes, seconds)) * max(1.0, bucket.samples / sizes[-1])
        return self._alone[key]

    def _column(self, tokens: int) -> int:
        return next((column for column in self._tokens if column >= tokens), self._tokens[-1])

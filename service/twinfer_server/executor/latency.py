"""Buckets and solo latencies: the padded sizes at which members run, and what each member takes there with nothing beside it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

MIN_TOKENS = 8


class Bucket(NamedTuple):
    """A padded size: samples, and tokens per sample (0 for a member whose inputs have no ragged dimension)."""

    samples: int
    tokens: int = 0


def doublings(first: int, last: int) -> tuple[int, ...]:
    """List `first`, twice that, and so on, ending with `last` itself: (8, 20) gives 8, 16, 20."""
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        size *= 2
    return (*sizes, last)


def round_up(size: int, sizes: Iterable[int]) -> int:
    """Return the smallest of `sizes` (ascending) that is at least `size`."""
    return next(candidate for candidate in sizes if candidate >= size)


class LatencyTable:
    """The members' solo latencies in seconds, to look up on the hot path: between measured sizes on a straight line."""

    def __init__(self, measured: Mapping[int, Mapping[Bucket, float]]) -> None:
        """Index what warm-up measured, by member index and bucket."""
        self.measured = measured
        self._known: dict[tuple[int, Bucket], float] = {}

    def solo_seconds(self, member: int, bucket: Bucket) -> float:
        """Return what a member takes at a bucket with nothing beside it; beyond the measured sizes in proportion."""
        key = (member, bucket)
        if key not in self._known:
            self._known[key] = self._interpolate(self.measured[member], bucket)
        return self._known[key]

    def least_seconds(self, member: int) -> float:
        """Return what a member takes at its smallest bucket."""
        return min(self.measured[member].values())

    def most_seconds(self, member: int) -> float:
        """Return what a member takes at its largest bucket."""
        return max(self.measured[member].values())

    @staticmethod
    def _interpolate(measured: Mapping[Bucket, float], bucket: Bucket) -> float:
        tokens = sorted({size.tokens for size in measured})
        column = next((size for size in tokens if size >= bucket.tokens), tokens[-1])
        samples = sorted(size.samples for size in measured if size.tokens == column)
        seconds = [measured[Bucket(size, column)] for size in samples]
        return float(np.interp(bucket.samples, samples, seconds)) * max(1.0, bucket.samples / samples[-1])

"""Buckets: the padded sizes at which members are timed, and run wherever padding is allowed."""

from collections.abc import Iterable
from typing import NamedTuple

MIN_TOKENS = 8


class Bucket(NamedTuple):
    """A size: samples, and tokens per sample (0 for a member whose inputs have no ragged dimension)."""

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
    """Give the smallest of `sizes` (ascending) that is at least `size`."""
    return next(candidate for candidate in sizes if candidate >= size)

"""The load: rows and what is right, replies and how long they took."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.pairs import PAIRS, Arrays

ROWS = 256
TOLERANCE = 1e-5
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """Different rows of a pair, and the probabilities that each must get, float32 [rows, classes]."""

    pair: str
    rows: Sequence[Arrays]
    expected: NDArray[np.float32]

    @classmethod
    def make(cls, pair: str) -> "Load":
        """Make the load of a pair."""
        rows = PAIRS[pair].rows(ROWS)
        return cls(pair, rows, PAIRS[pair].expect(rows))

    def check(self, number: int, classes: Sequence[int], probabilities: Sequence[float]) -> None:
        """Compare an answer with what plain torch gives; raises RuntimeError."""
        found, right = np.array(probabilities), self.expected[number][list(classes)]
        if not len(found) or not np.abs(found - right).max() <= TOLERANCE:
            raise RuntimeError(f"row {number}: found {found}; right: {right}")


@dataclass(slots=True)
class Tally:
    """Keeps the replies as they come, each with the number of its message, until there are enough."""

    replies: list[tuple[int, bytes]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    enough: float = math.inf
    is_over: bool = False

    def add(self, number: int, reply: bytes, began: float) -> None:
        """Note an answer to what was sent at `began`."""
        self.latencies.append(time.perf_counter() - began)
        self.replies.append((number, reply))
        self.is_over = self.is_over or len(self.replies) >= self.enough

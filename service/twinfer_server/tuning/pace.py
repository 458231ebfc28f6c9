"""Pace: how long calls take beside each other, and for what part of a call nobody else may run Python."""

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MIN_ROUNDS = 5
MAX_ROUNDS = 61
SECONDS = 1.0
"""How long one comparison may take, unless its `MIN_ROUNDS` take longer."""
TICK_SECONDS = 0.0005
CALLS = 3

MEDIANS_ERROR = 1.4826 * 1.2533
"""From the median deviation to the standard one, and from the error of a mean to that of a median, for normal scatter."""

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Paces:
    """Seconds of several calls, round by round."""

    seconds: tuple[tuple[float, ...], ...]

    @property
    def medians(self) -> list[float]:
        """The median of each call."""
        return [statistics.median(times) for times in self.seconds]

    def ratio(self, over: int, under: int) -> tuple[float, float]:
        """Give the time of one call over that of another, the median of the rounds, and the standard error of that median."""
        ratios = [one / other for one, other in zip(self.seconds[over], self.seconds[under], strict=True)]
        middle = statistics.median(ratios)
        scatter = statistics.median(abs(ratio - middle) for ratio in ratios)
        return middle, MEDIANS_ERROR * scatter / math.sqrt(len(ratios))


def pace(calls: Sequence[Call], device: torch.device) -> Paces:
    """Time `calls` in turns, for a machine's speed drifts. Each is called twice before, which pays for caches."""
    seen: list[list[float]] = [[] for _ in calls]
    for call in calls:
        _time(call, device)
        _time(call, device)
    began = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - began > SECONDS:
            break
        for times, call in zip(seen, calls, strict=True):
            times.append(_time(call, device))
    return Paces(tuple(map(tuple, seen)))


def _time(call: Call, device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def hold_share(call: Call) -> float:
    """Measure the part of `call` in which no other thread may run Python, 0 to 1: the least of some calls.

    A second thread ticks while the calling one computes; it is compared with how it ticks while the calling one sleeps. What the
    operating system keeps from it on a busy machine counts as held, hence the least.
    """
    ticks, is_over = 0, False

    def tick() -> None:
        nonlocal ticks
        while not is_over:
            time.sleep(TICK_SECONDS)
            ticks += 1

    thread = threading.Thread(target=tick, name="ticker", daemon=True)
    thread.start()
    shares = []
    try:
        for _ in range(CALLS):
            before, began = ticks, time.perf_counter()
            call()
            during, seconds = ticks - before, time.perf_counter() - began
            before = ticks
            time.sleep(seconds)
            shares.append(1.0 - min(1.0, during / max(1, ticks - before)))
    finally:
        is_over = True
        thread.join()
    return min(shares)

"""Warm-up: every bucket is captured where it can be and flown under every plan, and the faster plan is chosen.

So the first caller finds all warm. Plans are timed as lone flights in interleaved pairs, for a machine's speed drifts, and they
must agree. What counts is the time from fork to join; where a flight can be one graph, inside which the members cannot be told from
the rest, it is the whole flight from launch to landing. A member's alone time under a plan is what it takes on that plan's lane
with nothing beside it.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InvalidEnsemble
from .bucket import Bucket, doublings, round_up
from .capture import CannotCapture, FlightCapture, capture_member
from .ensemble import Ensemble
from .member import Member
from .times import BucketTimes, TimesTable
from .trial import fly_blank

logger = logging.getLogger(__name__)

Choice = TypeVar("Choice", str, int)

MIN_ROUNDS = 9
MAX_ROUNDS = 25
SECONDS_PER_POINT = 0.08
TOO_LONG_SECONDS = 0.5
"""A point twice the size of one that took so long is not flown; it is reckoned from the smaller one."""
LONG_ENOUGH_SECONDS = 0.02
"""A flight on which a second thread would show, if it helps at all."""
WORTH_A_SWITCH = 0.98
"""What part of the first plan's time another one must come below."""
WORTH_A_CORE = 0.8
"""What part of the time must be left for the serial plan to take all cores: decoding and answering want one too."""
AGREEMENT = 1e-3
"""How far the fused outputs of two plans may be apart."""

OnProgress = Callable[[int, int], None]
"""Told how many of how many points are done."""


def warm_up(ensemble: Ensemble, known: TimesTable | None, on_progress: OnProgress) -> None:
    """Make `ensemble` warm and set its `times`: measured now, or `known` from an earlier start on the same device.

    Call it on a thread that the device has prepared, with nothing in the air. Raises InvalidEnsemble.
    """
    with torch.inference_mode():
        _WarmUp(ensemble).run(known, on_progress)


class _WarmUp:
    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._device = ensemble.device
        self._everybody = tuple(range(len(ensemble.members)))
        ragged = [member.token_sizes for member in ensemble.members if member.token_sizes[-1]]
        self._tokens = sorted({size for sizes in ragged for size in sizes}) or [0]
        most = ensemble.spec.batching.max_batch_size
        self._rows = (most,) if ensemble.spec.deterministic else doublings(1, most)
        wanted = tuple(execution for execution in ensemble.plans if ensemble.spec.execution in (None, execution))
        if not wanted:
            raise InvalidEnsemble(
                f"plan: found {ensemble.spec.execution!r}; allowed on {self._device.torch_device}: auto, {', '.join(ensemble.plans)}"
            )
        self._plans = wanted if len(ensemble.members) > 1 else ("serial",)

    def run(self, known: TimesTable | None, on_progress: OnProgress) -> None:
        """Capture, time and choose, or with `known` only capture and fly each point once."""
        points = [Bucket(rows, tokens) for tokens in self._tokens for rows in self._rows]
        if self._device.can_capture:
            self._capture_members()
        if known is None:
            self._choose_threads(points)
        else:
            self._device.set_serial_threads(known.serial_threads)
        measured: list[BucketTimes] = []
        for done, point in enumerate(points):
            on_progress(done, len(points))
            before = known.find(point) if known else None
            smaller = measured[-1] if measured and measured[-1].bucket.tokens == point.tokens else None
            if before is not None:
                self._keep_capture(point, before.execution)
                measured.append(before)
            elif smaller is not None and max(smaller.plan_seconds.values()) > TOO_LONG_SECONDS:
                measured.append(smaller.scale_to(point))
            else:
                measured.append(self._measure(point))
            if before is not None and max(before.plan_seconds.values()) <= TOO_LONG_SECONDS:
                fly_blank(self._ensemble, before.execution, point, self._everybody)
        on_progress(len(points), len(points))
        self._ensemble.times = TimesTable(measured, self._device.serial_threads)

    # --- captures ---------------------------------------------------------------------------------------------------------

    def _capture_members(self) -> None:
        for member in self._ensemble.members:
            sizes = self._sample_sizes(member)
            buckets = [Bucket(samples, tokens) for samples in sizes for tokens in member.token_sizes]
            lane = self._ensemble.plans["streams"].members[member.index]
            before = member.device.memory_bytes()
            member.why_not_captured = capture_member(member, buckets, lane, member.device)
            member.cuda_graph_bytes = max(0, member.device.memory_bytes() - before)
            if member.why_not_captured:
                logger.warning("member %s is not captured: %s", member.name, member.why_not_captured)
            else:
                member.row_sizes = sizes

    def _sample_sizes(self, member: Member) -> tuple[int, ...]:
        """List the sample counts that a member is captured at."""
        if member.has_fixed_samples:
            return tuple(rows * member.samples_per_row for rows in self._rows)
        return (member.max_samples,) if self._ensemble.spec.deterministic else doublings(1, member.max_samples)

    def _capture_flight(self, point: Bucket, slot_number: int) -> FlightCapture:
        crew = self._ensemble.crew
        slots = [member.slots[slot_number] for member in crew.members]
        buckets = [
            Bucket(point.samples * member.samples_per_row, round_up_to_last(point.tokens, member.token_sizes))
            for member in crew.members
        ]
        return FlightCapture(crew, self._ensemble.captured_fusion, slots, buckets, self._ensemble.plans["graph"], self._device)

    def _keep_capture(self, point: Bucket, execution: str) -> None:
        """Keep captures of the whole flight, one for each slot, where the plan is `graph`; drop what was made to try it."""
        captures = self._ensemble.flight_captures
        for number in range(len(self._ensemble.members[0].slots)):
            if execution != "graph":
                captures.pop((number, point), None)
            elif (number, point) not in captures:
                captures[number, point] = self._capture_flight(point, number)

    def _plans_at(self, point: Bucket) -> tuple[str, ...]:
        """List the plans that can be tried; a whole flight can be captured where every member can."""
        if "graph" not in self._plans:
            return self._plans
        if any(member.why_not_captured or not member.has_fixed_samples for member in self._ensemble.members):
            return tuple(execution for execution in self._plans if execution != "graph") or ("streams",)
        try:
            self._ensemble.flight_captures[0, point] = self._capture_flight(point, 0)
        except CannotCapture as error:
            logger.warning("flights are not captured: %s", error)
            self._plans = tuple(execution for execution in self._plans if execution != "graph") or ("streams",)
        return self._plans

    # --- timing -----------------------------------------------------------------------------------------------------------

    def _measure(self, point: Bucket) -> BucketTimes:
        plans = self._plans_at(point)
        crews = [self._everybody, *((index,) for index in self._everybody)] if len(self._everybody) > 1 else [self._everybody]
        results = {
            execution: fly_blank(self._ensemble, execution, point, self._everybody).fused for execution in plans
        }  # pays for caches and threads too
        plans = self._agreeing(results)
        flights: dict[str, list[float]] = {execution: [] for execution in plans}
        joins: dict[str, list[float]] = {execution: [] for execution in plans}
        alone: dict[str, list[list[float]]] = {execution: [[] for _ in self._everybody] for execution in plans}
        for _ in _rounds():
            for crew in crews:
                for execution in plans:
                    trial = fly_blank(self._ensemble, execution, point, crew)
                    if crew == self._everybody:
                        flights[execution].append(trial.flight_seconds if "graph" in plans else trial.wall_seconds)
                        joins[execution].append(trial.wall_seconds)
                    if len(crew) == 1:
                        alone[execution][crew[0]].append(trial.member_seconds[crew[0]] or trial.wall_seconds)
        chosen = _choose(flights)
        self._keep_capture(point, chosen)
        return BucketTimes(
            bucket=point,
            execution=chosen,
            plan_seconds={execution: statistics.median(times) for execution, times in flights.items()},
            join_seconds=statistics.median(joins[chosen]),
            solo_seconds={execution: tuple(statistics.median(times) for times in alone[execution]) for execution in plans},
        )

    def _agreeing(self, results: Mapping[str, Tensor]) -> tuple[str, ...]:
        """List the plans whose fused output is the first one's; a plan that is off is a defect, and is not flown."""
        first = next(iter(results.values()))
        agreeing = []
        for execution, fused in results.items():
            error = (fused - first).abs().max().item()
            if error <= AGREEMENT:
                agreeing.append(execution)
            else:
                logger.error("plan %s is off by %.3g and will not be flown", execution, error)
        return tuple(agreeing)

    def _choose_threads(self, points: Sequence[Bucket]) -> None:
        """Let the serial plan compute with more than one thread only where that is faster by more than flights scatter."""
        choices = self._device.thread_choices()
        if len(choices) < 2:
            return
        point = points[-1]
        for point in points:
            if fly_blank(self._ensemble, "serial", point, self._everybody).wall_seconds > LONG_ENOUGH_SECONDS:
                break
        flights: dict[int, list[float]] = {count: [] for count in choices}
        for _ in _rounds():
            for count in choices:
                self._device.set_serial_threads(count)
                fly_blank(self._ensemble, "serial", point, self._everybody)
                flights[count].append(fly_blank(self._ensemble, "serial", point, self._everybody).wall_seconds)
        self._device.set_serial_threads(_choose(flights, WORTH_A_CORE))


def round_up_to_last(size: int, sizes: Sequence[int]) -> int:
    """Give the smallest of `sizes` that is at least `size`, or the last."""
    return round_up(min(size, sizes[-1]), sizes)


def _rounds() -> Iterator[None]:
    began = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - began > SECONDS_PER_POINT:
            return
        yield


def _choose(flights: Mapping[Choice, list[float]], worth: float = WORTH_A_SWITCH) -> Choice:
    """Keep the first choice unless another is faster, pair by pair, by more than the pairs scatter.

    `worth` is the part of the first one's time below which the other must come.
    """
    first = best = next(iter(flights))
    best_ratio = worth
    for choice, seconds in flights.items():
        if choice != first:
            ratios = [ours / theirs for ours, theirs in zip(seconds, flights[first], strict=True)]
            ratio = statistics.median(ratios)
            scatter = statistics.median(abs(other - ratio) for other in ratios)
            if ratio + scatter < best_ratio:
                best, best_ratio = choice, ratio
    return best

"""The plain messages inside the service: a row on its way in, its answer on the way out.

Nothing here knows protobuf or torch: arrays and small dataclasses only, so that a row can cross a process boundary.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .errors import DeadlinePassed, TwinferError

Array = NDArray[np.generic]
RawInput = bytes | str | tuple[str, ...] | Array
"""What a caller sent for one input: an encoded image, a text, several texts (at least one), or a ready tensor."""


class Policy(IntEnum):
    """What an answer needs, with the numbers of `twinfer.v1.Policy`."""

    REQUIRE_ALL = 1
    BEST_EFFORT = 2


class Priority(IntEnum):
    """Which rows go first, with the numbers of `twinfer.v1.Priority`."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class State(IntEnum):
    """What became of a member for a row, with the numbers of `twinfer.v1.MemberState`."""

    OK = 1
    FAILED = 2
    LATE = 3
    SKIPPED = 4
    OFF = 5
    NO_INPUT = 6


DEGRADING = (State.FAILED, State.LATE, State.OFF)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ids for logs and traces, never used for the answer."""

    request_id: str = ""
    traceparent: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One row as it arrived, checked against nothing yet but its own form.

    `arrived_at` and `deadline` are absolute times of `time.monotonic()`, in seconds; `deadline` is None where the call has none.
    `timeout_seconds` counts from `arrived_at`. `fusion_weights` are as sent: neither normalised nor complete.
    """

    inputs: Mapping[str, RawInput]
    arrived_at: float
    deadline: float | None = None
    ensemble: str = ""
    version: int = 0
    policy: Policy | None = None
    timeout_seconds: float | None = None
    priority: Priority = Priority.NORMAL
    top_k: int = 0
    wants_member_predictions: bool = False
    wants_explanation: bool = False
    fusion_weights: Mapping[str, float] = field(default_factory=dict)
    caller: Caller = Caller()


Samples = tuple[Array, ...]
"""A member's prepared input for one row: one array [samples, ...] per staging buffer of the member."""


@dataclass(frozen=True, slots=True)
class PartialResult:
    """What a member gave for a row in an earlier flight: `output` float32 [samples, ...], or None and the error."""

    output: NDArray[np.float32] | None
    error: TwinferError | None
    device_seconds: float | None
    solo_seconds: float | None
    used_cuda_graph: bool


@dataclass(slots=True, eq=False)
class Request:
    """One row on its way through the engine.

    `samples` holds, by member index, what each member computes on; a member without input is absent. `crew` are the members that
    its next flight needs; in a cascade those are not all, and what earlier flights gave is in `parts`. `weights` is float64
    [members], summing to 1, or None for the fusion's own. `reply_by` is the monotonic time at which the row must be answered: its
    deadline less the reply margin. `answer` is resolved once, on the event loop; a blank row of warm-up has none.
    """

    request: InferRequest
    policy: Policy
    weights: NDArray[np.float64] | None
    reply_by: float
    answer: "asyncio.Future[Response] | None" = None
    samples: Mapping[int, Samples] = field(default_factory=dict)
    crew: tuple[int, ...] = ()
    parts: dict[int, PartialResult] = field(default_factory=dict)
    flown_seconds: float = 0.0
    """How long its earlier flights took."""
    ready_at: float = 0.0
    decode_seconds: float = 0.0
    blocked_at: float = 0.0
    """When it was ready, or later, and lanes or slots were busy; 0 if they were not."""
    size_bytes: int = 0
    """Its share of the size of its request; known where the row comes from another process."""
    place: int = 0
    """Its place among the rows that came with it, from 0."""

    def __post_init__(self) -> None:
        """Have every member that the row has samples for fly, unless somebody has said otherwise."""
        self.crew = self.crew or tuple(self.samples)

    @property
    def is_answered(self) -> bool:
        """Whether somebody has answered, failed or given up this row."""
        return self.answer is None or self.answer.done()

    @property
    def outcome(self) -> "Response | TwinferError":
        """The answer that it got, or the error that it ended with; raises what is neither. Once it is answered."""
        assert self.answer is not None
        error = self.answer.exception()
        return error if isinstance(error, TwinferError) else self.answer.result()

    @property
    def without_flight(self) -> DeadlinePassed:
        """The error that it ends with if its time is up before it has a flight."""
        seconds = self.reply_by - self.request.arrived_at
        which = "the earliest of the call's own, options.timeout and the server's default_timeout_seconds"
        return DeadlinePassed(f"the row had no flight within {seconds:.3f} s of its arrival, as its deadline asks: {which}")


@dataclass(frozen=True, slots=True)
class Attribution:
    """How far a member moved an answer, 0 to 1, and what the others would have said without it: float32, as `Answer.fused`."""

    moved: float
    without: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MemberResult:
    """One member's part in an answer; `output` is float32 [...], or None where it has none."""

    state: State
    weight: float = 0.0
    device_seconds: float | None = None
    output: NDArray[np.float32] | None = None
    error: TwinferError | None = None
    solo_seconds: float | None = None
    used_cuda_graph: bool = False
    attribution: Attribution | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a row's time went, in seconds; the total is counted when the answer is written."""

    decode_seconds: float
    queue_seconds: float
    device_seconds: float
    batch_size: int
    overlap_ratio: float | None = None
    execution: str = ""
    buffer_wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Response:
    """One fused answer; members in the ensemble's order.

    `fused` is float32, by task: classification and multi_label probabilities [classes]; embedding [features]; similarity
    [texts, 2], cosine and probability; detection [boxes, 6], x_min, y_min, x_max, y_max (0 to 1), score (0: no box) and class;
    tensor [...].
    """

    fused: NDArray[np.float32]
    members: tuple[MemberResult, ...]
    disagreement: float | None
    timings: Timings
    fusion_version: int = 1

    @property
    def is_degraded(self) -> bool:
        """Whether a member that should have taken part did not."""
        return any(member.state in DEGRADING for member in self.members)

"""The plain messages inside the service: a request on its way in, its response on the way out.

Nothing here knows protobuf, gRPC or torch: arrays and small dataclasses only.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DeadlinePassed, TwinferError

if TYPE_CHECKING:
    from concurrent.futures import Future

Array = NDArray[np.generic]
RawInput = bytes | str | tuple[str, ...] | Array
"""What a caller sent for one input: an encoded image, a text, several texts (at least one), or a ready tensor."""
Samples = tuple[Array, ...]
"""A member's prepared input for one request: one array [samples, ...] per staging buffer of the member."""
ANONYMOUS = "anonymous"
"""What callers without a name are called in metrics and in the audit log; no caller's own name."""


class Policy(IntEnum):
    """What an answer needs, with the numbers of `twinfer.v1.Policy`."""

    REQUIRE_ALL = 1
    BEST_EFFORT = 2


class Priority(IntEnum):
    """Which requests go first, with the numbers of `twinfer.v1.Priority`."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class State(IntEnum):
    """What became of a member for a request, with the numbers of `twinfer.v1.MemberState`."""

    OK = 1
    FAILED = 2
    LATE = 3
    SKIPPED = 4
    OFF = 5
    NO_INPUT = 6


DEGRADING = (State.FAILED, State.LATE, State.OFF)

Facts = Mapping[str, str | bool | int | float | Sequence[str]]
"""What a span says of itself, by OpenTelemetry's names or, where there are none, by names that begin with `twinfer.`."""


class TraceSpan(Protocol):
    """A span of a trace that is being recorded. Times are those of `time.monotonic()`, in seconds; any thread may call it."""

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        ...

    def begin(self, name: str, began_at: float) -> "TraceSpan":
        """Begin a span inside this one."""
        ...

    def note(self, facts: Facts) -> None:
        """Add to what the span says of itself."""
        ...

    def note_error(self, kind: str, text: str = "") -> None:
        """Say that what the span stands for has failed, by a `kind` of which there are few."""
        ...

    def end(self, ended_at: float) -> None:
        """End it, and hand it on to be exported."""
        ...


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may ask for, whatever room there is; None is no limit of its own."""

    requests_per_second: float | None = None
    requests_in_flight: int | None = None
    bytes_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request as it arrived, checked against nothing yet but its own form.

    `arrived_at` and `deadline` are absolute times of `time.monotonic()`, in seconds; `deadline` is None where the call has none.
    `timeout_seconds` counts from `arrived_at`. `fusion_weights` are as sent: neither normalised nor complete.
    """

    inputs: Mapping[str, RawInput]
    arrived_at: float
    deadline: float | None = None
    ensemble: str = ""
    version: int = 0
    request_id: str = ""
    policy: Policy | None = None
    timeout_seconds: float | None = None
    priority: Priority = Priority.NORMAL
    top_k: int = 0
    wants_member_predictions: bool = False
    wants_explanation: bool = False
    fusion_weights: Mapping[str, float] = field(default_factory=dict)
    caller: str = ""
    """The name that the caller has proved, by which limits, turns and counters go; empty where names are not asked for."""
    span: TraceSpan | None = None
    """The span that stands for the request, where its trace is recorded."""


@dataclass(frozen=True, slots=True)
class PartialResult:
    """What a member gave for a request in an earlier batch: `output` float32 [samples, ...], or None and the error."""

    output: NDArray[np.float32] | None
    error: TwinferError | None
    device_seconds: float | None = None
    solo_seconds: float | None = None
    used_cuda_graph: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way through the engine.

    `samples` holds, by member index, what each member computes on; a member without input is absent. `members` are those that its
    next batch needs; in a cascade these are not all, and what earlier batches gave is in `partials`. `weights` is float64
    [members], summing to 1, or None for the fusion's own. `reply_by` is the monotonic time by which the request must be answered:
    its deadline less the reply slack. `response` is resolved once, on the event loop; a synthetic request has none.
    """

    request: InferRequest
    policy: Policy
    weights: NDArray[np.float64] | None
    reply_by: float
    response: "asyncio.Future[Response] | Future[Response] | None" = None
    samples: Mapping[int, Samples] = field(default_factory=dict)
    members: tuple[int, ...] = ()
    partials: dict[int, PartialResult] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    """How long its earlier batches took."""
    ready_at: float = 0.0
    decode_seconds: float = 0.0
    blocked_at: float = 0.0
    """When the request was ready, or later, and streams or staging buffers were busy; 0 if they were not."""
    index: int = 0
    """Its index among the requests that came in the same call, from 0."""

    def __post_init__(self) -> None:
        """Ask every member that there are samples for, unless the caller has said otherwise."""
        self.members = self.members or tuple(self.samples)

    @property
    def is_answered(self) -> bool:
        """Whether the request has its response or its error, or was cancelled."""
        return self.response is None or self.response.done()

    def is_awaited(self, now: float) -> bool:
        """Whether an output could still reach the caller; of a synthetic request there is always one that waits."""
        return now < self.reply_by and not (self.response is not None and self.response.done())

    @property
    def outcome(self) -> "Response | TwinferError":
        """The response of an answered request, or the error that it ended with; raises what is neither."""
        assert self.response is not None
        error = self.response.exception()
        return error if isinstance(error, TwinferError) else self.response.result()

    def pending_members(self) -> tuple[int, ...]:
        """List the members that there are samples for and that have not been asked, nor are being asked now."""
        return tuple(index for index in self.samples if index not in self.members and index not in self.partials)

    def unbatched_error(self) -> DeadlinePassed:
        """Return the error for a request whose time is up before it is in a batch."""
        seconds = self.reply_by - self.request.arrived_at
        which = "the earliest of the call's own, options.timeout and the server's default_timeout_seconds"
        return DeadlinePassed(f"the request was in no batch within {seconds:.3f} s of its arrival, as its deadline asks: {which}")


@dataclass(frozen=True, slots=True)
class Attribution:
    """How far a member moved the prediction, 0 to 1, and what it would have been without that member: float32, as fused."""

    delta: float
    without: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MemberResult:
    """One member's part in a response; `prediction` is its own, float32 [...], or None where it has none."""

    state: State
    weight: float = 0.0
    device_seconds: float | None = None
    prediction: NDArray[np.float32] | None = None
    error: TwinferError | None = None
    solo_seconds: float | None = None
    used_cuda_graph: bool = False
    attribution: Attribution | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; the total is counted when the response is written."""

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

    `prediction` is float32, by task: classification and multi_label probabilities [classes]; embedding [features]; similarity
    [texts, 2], cosine and probability; detection [boxes, 6], x_min, y_min, x_max, y_max (0 to 1), score (0: no box) and class;
    tensor [...].
    """

    prediction: NDArray[np.float32]
    members: tuple[MemberResult, ...]
    disagreement: float | None
    timings: Timings
    fusion_version: int = 1

    @property
    def is_degraded(self) -> bool:
        """Whether a member that should have taken part did not."""
        return any(member.state in DEGRADING for member in self.members)

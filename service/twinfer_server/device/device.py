"""The nouns of every device: streams do work in order, events mark points in it, staging memory carries bytes to the device.

A batch is written once, against these protocols; `cpu` and `cuda` implement them, and the tests have a recording device.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

Work = Callable[[], None]
"""A piece of device work; it handles its own failures and never raises."""
Execution = Literal["serial", "streams"]
"""What a batch's members run on: one stream for all, one after the other, or a stream for each."""


class UnrecordedEvent(RuntimeError):
    """A stream was asked to wait for an event that was never recorded; on CUDA it would wait for nothing."""


class CannotCapture(Exception):
    """Work cannot be a CUDA graph; says why. It runs eagerly."""


class Event(Protocol):
    """A point in a stream's work. It is made first and recorded later.

    `done_at` is when it was done by `time.monotonic()`, or None where only the device's own clock knows.
    """

    @property
    def done_at(self) -> float | None:
        """When the event was done, in seconds of the host's clock; without meaning before."""
        ...

    @property
    def is_recorded(self) -> bool:
        """Whether a stream has been told to mark the event."""
        ...

    def is_done(self) -> bool:
        """Whether the event was recorded and all work before it has run, or never will because the device is lost; never waits."""
        ...

    def wait(self) -> None:
        """Sleep until the event is done. Only completion threads, checks and warm-up call this."""
        ...

    def seconds_since(self, earlier: "Event") -> float:
        """Return the device time from `earlier` to this event, in seconds; both must be done."""
        ...


class Graph(Protocol):
    """Captured work: replaying it does all of it again with one launch, into the same tensors."""

    outputs: list[Tensor]

    def replay(self) -> None:
        """Launch the captured work on the current stream."""
        ...


class Stream(Protocol):
    """Work in order on the device: one CUDA stream, or on a CPU a worker thread or the launching thread itself."""

    name: str

    def submit(self, work: Work) -> None:
        """Queue `work` behind what is already queued."""
        ...

    def record(self, event: Event) -> None:
        """Mark the point after everything queued so far."""
        ...

    def wait_event(self, event: Event) -> None:
        """Hold later work of this stream until `event` is done; the caller does not wait. Raises UnrecordedEvent."""
        ...

    def close(self) -> None:
        """Let queued work finish and end the stream's thread, where it has one; does not wait for stuck work."""
        ...


class Device(Protocol):
    """Where an ensemble computes: makes streams, events and staging memory."""

    torch_device: torch.device
    description: str
    """What the device is, down to its driver."""
    default_execution: Execution
    can_capture: bool
    """Whether the device has graphs; `capture` is called only then."""

    def stream(self, name: str, is_high: bool = False) -> Stream:
        """Make a stream of its own; one of high priority goes before the others where they compete for the device."""
        ...

    def launch_stream(self, name: str) -> Stream:
        """Return a stream that costs the launching thread least: on a CPU the launching thread itself."""
        ...

    def event(self) -> Event:
        """Make an event that is not recorded yet."""
        ...

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make a (host, device) pair of staging tensors; the two are one where host and device share memory."""
        ...

    def capture(
        self, stream: Stream, work: Callable[[], list[Tensor]], pool: object | None = None, *, is_serving: bool = False
    ) -> Graph:
        """Warm `work` up on `stream` and capture it; raises CannotCapture where it waits for the device.

        Graphs that never run at the same time may share the memory of a `pool`.
        """
        ...

    def graph_pool(self) -> object:
        """Make a memory pool for graphs that never run at the same time."""
        ...

    def find_loss(self) -> str:
        """Say why the device can do nothing any more, after an error on it; empty where it still can. Never waits."""
        ...

    def memory_bytes(self) -> int:
        """Count the device memory that is reserved, with nothing under way; 0 where it is the host's own."""
        ...

    def memory_use(self) -> Mapping[str, float]:
        """Return bytes of its memory: `total`, `used` by all processes, `allocated` to tensors; {} where it is the host's."""
        ...

    def utilization(self) -> float | None:
        """Return the part of the last moments in which the device computed, 0 to 1; None where nothing can say so."""
        ...

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Do `work` on the calling thread and count the device memory that it held at its peak; 0 where it is the host's own."""
        ...

    def prepare_thread(self, *, is_launching: bool = False) -> None:
        """Set up the calling thread for device work: its intra-op threads, its current device; a launching one for good."""
        ...

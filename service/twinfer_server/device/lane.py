"""The nouns of every device: lanes do work in order, events say when it is done, staging carries bytes to the device.

A flight is written once, against these protocols; `cpu` and `cuda` give them a body, and a test gives them a recorder.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Work = Callable[[], None]
"""A piece of device work; it keeps its own failures to itself and never raises."""


class Event(Protocol):
    """A point in a lane's work. It is made first and recorded later, so that others can already hold it.

    `done_at` is when it was done by `time.monotonic()`, or None where only the device's own clock knows.
    """

    @property
    def done_at(self) -> float | None:
        """When the event was done, in seconds of the host's clock; without meaning before."""
        ...

    def is_done(self) -> bool:
        """Whether the event was recorded and all work before it has run; never waits."""
        ...

    def wait(self) -> None:
        """Sleep until the event is done. Only wait threads and warm-up call this."""
        ...

    def seconds_since(self, earlier: "Event") -> float:
        """Give the device time from `earlier` to this event, in seconds; both must be done."""
        ...


class Graph(Protocol):
    """Captured work: replaying it does all of it again with one launch, into the same `outputs`."""

    outputs: list[Tensor]

    def replay(self) -> None:
        """Launch the captured work on the current lane."""
        ...


class Lane(Protocol):
    """Work in order on the device: one CUDA stream, or on a CPU one worker thread."""

    name: str

    def run(self, work: Work) -> None:
        """Queue `work` behind what is already queued."""
        ...

    def record(self, event: Event) -> None:
        """Mark the point after everything queued so far."""
        ...

    def wait_for(self, event: Event) -> None:
        """Hold later work of this lane until `event` is done; the caller does not wait."""
        ...

    def close(self) -> None:
        """Let queued work finish and give the lane's thread or stream back; does not wait for stuck work."""
        ...


class Device(Protocol):
    """Where an ensemble computes: makes lanes, events and staging buffers."""

    torch_device: torch.device
    fingerprint: str
    """What the device is, down to its driver: measurements on another one do not count."""
    runs_inline: bool
    """Whether the serial plan computes on the thread that launches, so that launching waits for the computing."""

    def lane(self, name: str, is_high: bool = False) -> Lane:
        """Make a lane of its own; one of high priority goes before the others where they compete for the device."""
        ...

    def serial_lane(self) -> Lane:
        """Give the lane on which the serial plan runs everything."""
        ...

    def copy_lane(self) -> Lane:
        """Give the lane on which inputs travel to the device."""
        ...

    def event(self) -> Event:
        """Make an event that is not recorded yet."""
        ...

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make a (host, device) pair of buffers; the two are one tensor where host and device share memory."""
        ...

    def thread_choices(self) -> tuple[int, ...]:
        """List the numbers of threads with which the serial plan can compute, fewest first."""
        ...

    serial_threads: int
    """The number of threads with which the serial plan computes."""

    def set_serial_threads(self, count: int) -> None:
        """Let the serial plan compute with `count` threads from now on, and so the calling thread."""
        ...

    can_capture: bool
    """Whether the device has graphs; the three methods for capturing are called only then, and only with nothing in the air."""

    def graph_pool(self) -> object:
        """Make a memory pool for graphs that never run at the same time."""
        ...

    def find_sync(self, lane: Lane, work: Callable[[], list[Tensor]]) -> str:
        """Do `work` on `lane` to warm it up, and say where it waits for the device; empty if it never does."""
        ...

    def capture(self, lane: Lane, work: Callable[[], list[Tensor]], pool: object) -> Graph:
        """Capture `work`, beginning on `lane`; other lanes that it forks to must have joined again when it ends."""
        ...

    def find_loss(self) -> str:
        """Say why the device can do nothing any more, after an error on it; empty where it still can. Never waits."""
        ...

    def memory_bytes(self) -> int:
        """Count the device memory that is in use, with nothing in the air; 0 where it is the host's own."""
        ...

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Do `work` on the calling thread and count the memory that it held at its peak; with nothing in the air."""
        ...

    def give_way(self) -> None:
        """Let the calling thread go behind the host's other threads, where it computes on the same cores; for good."""
        ...

    def prepare_thread(self) -> None:
        """Set up the calling thread for launching: its threads for computing, its current device."""
        ...

"""A device that records what is asked of it, and computes as late and in as bad an order as its events allow.

Streams only queue. Work is done when something waits for an event, and then in a random order that keeps each stream's own: what
a batch forgets to hold back happens too early, sooner or later. As on CUDA, waiting on the device for an event that was never
recorded waits for nothing. Host and device buffers are apart; device buffers hold rubbish until something is copied to them, and
`poison` makes that of all that a released set of buffers holds.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twinfer_server.device import CannotCapture, Event, Execution, Graph, Stream, Work
from twinfer_server.executor.buffers import StagingBuffers

RUBBISH = 77


class Refused(RuntimeError):
    """What the device raises where it was told to refuse."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the record: `what` was done on `stream`, by the thread named `thread`."""

    stream: str
    what: Literal["submit", "record", "wait"]
    name: str
    thread: str = ""


class RecordedEvent:
    """An event of the device, which counts its own ticks; waiting for it on the host makes the device work until it is done."""

    done_at = None

    def __init__(self, device: "RecordingDevice") -> None:
        self.is_recorded = False
        self.tick: int | None = None
        self._device = device

    def is_done(self) -> bool:
        return self.tick is not None

    def wait(self) -> None:
        self._device.waits.append(threading.current_thread().name)
        if self.is_recorded:  # else, as on CUDA, there is nothing to wait for
            self._device.work_until(self)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, RecordedEvent)
        assert self.tick is not None
        assert earlier.tick is not None
        return float(self.tick - earlier.tick)


@dataclass(frozen=True, slots=True)
class Operation:
    """Something queued on a stream."""

    what: Literal["submit", "record", "wait"]
    work: Work | None = None
    event: RecordedEvent | None = None


class RecordedStream:
    """A stream that queues; the device works its queue off."""

    def __init__(self, name: str, device: "RecordingDevice") -> None:
        self.name = name
        self.queue: deque[Operation] = deque()
        self._device = device

    def submit(self, work: Work) -> None:
        self._device.accept(self, Operation("submit", work=work))

    def record(self, event: Event) -> None:
        assert isinstance(event, RecordedEvent)
        self._device.accept(self, Operation("record", event=event))
        event.is_recorded = True

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, RecordedEvent)
        if event.is_recorded:
            self._device.accept(self, Operation("wait", event=event))
        else:
            self._device.idle_waits += 1

    def close(self) -> None:
        """End nothing."""


class RecordingDevice:
    """A device with queues, a record of what was `asked` of it, and one of what was `done`.

    `refuse_at` counts down the operations until one is refused; `is_immediate` has it work off everything at once. `idle_waits`
    counts the waits that waited for nothing.
    """

    default_execution: Execution = "serial"
    can_capture = False

    def __init__(self, seed: int = 0) -> None:
        self.torch_device = torch.device("cpu")
        self.description = "recording"
        self.asked: list[Entry] = []
        self.done: list[Entry] = []
        self.waits: list[str] = []
        self.idle_waits = 0
        self.is_immediate = True
        self.refuse_at: int | None = None
        self.streams: list[RecordedStream] = []
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._clock = 0

    # --- what the service asks for ------------------------------------------------------------------------------------------

    def stream(self, name: str, is_high: bool = False) -> RecordedStream:
        self.streams.append(RecordedStream(name, self))
        return self.streams[-1]

    def launch_stream(self, name: str) -> RecordedStream:
        return self.stream(name)

    def event(self) -> RecordedEvent:
        return RecordedEvent(self)

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.full(shape, RUBBISH).to(dtype), torch.full(shape, RUBBISH).to(dtype)

    def capture(
        self, stream: Stream, work: Callable[[], list[Tensor]], pool: object | None = None, *, is_serving: bool = False
    ) -> Graph:  # fmt: skip
        raise CannotCapture("the recording device has no graphs")

    def graph_pool(self) -> object:
        return None

    def find_loss(self) -> str:
        return ""

    def memory_bytes(self) -> int:
        return 0

    def memory_use(self) -> Mapping[str, float]:
        return {}

    def utilization(self) -> float | None:
        return None

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 0

    def prepare_thread(self, *, is_launching: bool = False) -> None:
        """Prepare nothing."""

    # --- what a test asks for -----------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """From now on only queue, and forget the record of loading and warm-up."""
        self.is_immediate = False
        self.asked.clear()
        self.done.clear()
        self.waits.clear()

    def accept(self, stream: RecordedStream, operation: Operation) -> None:
        """Queue an operation, or refuse it."""
        with self._lock:
            if self.refuse_at is not None:
                self.refuse_at -= 1
                if self.refuse_at < 0:
                    self.refuse_at = None
                    raise Refused("the device refuses")
            self.asked.append(self._describe(stream, operation))
            stream.queue.append(operation)
            if self.is_immediate:
                self._work_off(stream)

    def work_until(self, event: Event, stuck: str = "") -> None:
        """Do runnable operations in random order until `event` is done, none of them on the stream `stuck`."""
        with self._lock:
            while not event.is_done():
                streams = [stream for stream in self.streams if stream.name != stuck and self._is_runnable(stream)]
                assert streams, "the event will never be done"
                self._work_off(self._random.choice(streams))

    def is_working(self) -> bool:
        """Whether some queued work has not been done."""
        return any(operation.what == "submit" for stream in self.streams for operation in stream.queue)

    def _is_runnable(self, stream: RecordedStream) -> bool:
        if not stream.queue:
            return False
        first = stream.queue[0]
        return first.what != "wait" or (first.event is not None and first.event.is_done())

    def _work_off(self, stream: RecordedStream) -> None:
        operation = stream.queue.popleft()
        self.done.append(self._describe(stream, operation))
        self._clock += 1
        if operation.work is not None:
            operation.work()
        elif operation.what == "record":
            assert operation.event is not None
            operation.event.tick = self._clock

    @staticmethod
    def _describe(stream: RecordedStream, operation: Operation) -> Entry:
        name = getattr(operation.work, "__qualname__", "") if operation.work else ""
        return Entry(stream.name, operation.what, name, threading.current_thread().name)


def poison(buffers: StagingBuffers) -> None:
    """Make rubbish of all that a released set of staging buffers holds, as the next batch may at any time."""
    for tensor in (*buffers._host, *buffers._device, buffers._host_outputs):
        tensor.fill_(RUBBISH)

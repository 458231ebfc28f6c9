"""A device that writes down what is asked of it, and computes as late and in as bad an order as its events allow.

Lanes only queue. Work is done when somebody waits for an event, and then in a random order that keeps each lane's own: what a
flight forgets to hold back happens too early, sooner or later. Host and device buffers are apart, and device buffers hold rubbish
until something is copied to them.
"""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twinfer_server.device import Event, Lane, Work

RUBBISH = 77


class Refused(RuntimeError):
    """What the device raises where it was told to refuse."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the record: `what` was done on `lane`, by the thread named `thread`."""

    lane: str
    what: Literal["run", "record", "hold", "wait"]
    name: str
    thread: str = ""


class RecordedEvent:
    """An event of the device; waiting for it makes the device work until it is done."""

    def __init__(self, device: "RecordingDevice") -> None:
        self.name = ""
        self.done_at: int | None = None
        self._device = device

    def is_done(self) -> bool:
        return self.done_at is not None

    def wait(self) -> None:
        self._device.waits.append(threading.current_thread().name)
        self._device.work_until(self)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, RecordedEvent)
        assert self.done_at is not None
        assert earlier.done_at is not None
        return float(self.done_at - earlier.done_at)


@dataclass(frozen=True, slots=True)
class Operation:
    """Something queued on a lane."""

    what: Literal["run", "record", "hold"]
    work: Work | None = None
    event: RecordedEvent | None = None


class RecordedLane:
    """A lane that queues; the device works its queue off."""

    def __init__(self, name: str, device: "RecordingDevice") -> None:
        self.name = name
        self.queue: deque[Operation] = deque()
        self._device = device

    def run(self, work: Work) -> None:
        self._device.accept(self, Operation("run", work=work))

    def record(self, event: Event) -> None:
        assert isinstance(event, RecordedEvent)
        self._device.accept(self, Operation("record", event=event))

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, RecordedEvent)
        self._device.accept(self, Operation("hold", event=event))

    def close(self) -> None:
        """Nothing to give back."""


class RecordingDevice:
    """A device with queues, a record of what was `asked` of it, and one of what was `done`.

    `refuse_at` counts down the operations until one is refused; `is_immediate` has it work off everything at once.
    """

    can_capture = False
    runs_inline = False
    serial_threads = 1

    def __init__(self, seed: int = 0) -> None:
        self.torch_device = torch.device("cpu")
        self.fingerprint = "recording"
        self.asked: list[Entry] = []
        self.done: list[Entry] = []
        self.waits: list[str] = []
        self.is_immediate = True
        self.refuse_at: int | None = None
        self.lanes: list[RecordedLane] = []
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._serial = self.lane("serial")
        self._copy = self.lane("copy")
        self._clock = 0

    # --- what the service asks for ----------------------------------------------------------------------------------------

    def lane(self, name: str, is_high: bool = False) -> RecordedLane:
        self.lanes.append(RecordedLane(name, self))
        return self.lanes[-1]

    def serial_lane(self) -> RecordedLane:
        return self._serial

    def copy_lane(self) -> RecordedLane:
        return self._copy

    def event(self) -> RecordedEvent:
        return RecordedEvent(self)

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.full(shape, RUBBISH).to(dtype), torch.full(shape, RUBBISH).to(dtype)

    def thread_choices(self) -> tuple[int, ...]:
        return (1,)

    def set_serial_threads(self, count: int) -> None:
        """Nothing to set."""

    def graph_pool(self) -> object:
        raise NotImplementedError

    def find_sync(self, lane: Lane, work: Callable[[], list[Tensor]]) -> str:
        raise NotImplementedError

    def capture(self, lane: Lane, work: Callable[[], list[Tensor]], pool: object) -> "NoGraph":
        raise NotImplementedError

    def find_loss(self) -> str:
        return ""

    def memory_bytes(self) -> int:
        return 0

    def prepare_thread(self) -> None:
        """Nothing to prepare."""

    def peak_bytes(self, work: Callable[[], object]) -> int:
        raise NotImplementedError

    def give_way(self) -> None:
        """Nothing to give."""

    # --- what a test asks for ---------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """From now on only queue, and forget the record of loading and warm-up."""
        self.is_immediate = False
        self.asked.clear()
        self.done.clear()
        self.waits.clear()

    def accept(self, lane: RecordedLane, operation: Operation) -> None:
        """Queue an operation, or refuse it."""
        with self._lock:
            if self.refuse_at is not None:
                self.refuse_at -= 1
                if self.refuse_at < 0:
                    self.refuse_at = None
                    raise Refused("the device refuses")
            self.asked.append(self._describe(lane, operation))
            lane.queue.append(operation)
            if self.is_immediate:
                self._work_off(lane)

    def work_until(self, event: Event, stuck: str = "") -> None:
        """Do runnable operations in random order until `event` is done, none of them on the lane `stuck`."""
        with self._lock:
            while not event.is_done():
                lanes = [lane for lane in self.lanes if lane.name != stuck and self._is_runnable(lane)]
                assert lanes, "whoever waits here waits for ever"
                self._work_off(self._random.choice(lanes))

    def is_working(self) -> bool:
        """Whether some queued work has not been done."""
        return any(operation.what == "run" for lane in self.lanes for operation in lane.queue)

    def _is_runnable(self, lane: RecordedLane) -> bool:
        if not lane.queue:
            return False
        first = lane.queue[0]
        return first.what != "hold" or (first.event is not None and first.event.is_done())

    def _work_off(self, lane: RecordedLane) -> None:
        operation = lane.queue.popleft()
        self.done.append(self._describe(lane, operation))
        self._clock += 1
        if operation.work is not None:
            operation.work()
        elif operation.what == "record":
            assert operation.event is not None
            operation.event.done_at = self._clock

    @staticmethod
    def _describe(lane: RecordedLane, operation: Operation) -> Entry:
        name = getattr(operation.work, "__qualname__", "") if operation.work else ""
        return Entry(lane.name, operation.what, name, threading.current_thread().name)


class NoGraph:
    """What this device never gives."""

    outputs: list[Tensor]

    def replay(self) -> None:
        raise NotImplementedError

"""Lanes on a CPU: worker threads, with events of their own because torch's CPU events cannot be recorded or waited on."""

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from .lane import Event, Graph, Lane, Work
from .meter import MemoryMeter

logger = logging.getLogger(__name__)


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_BELLS = threading.Lock()
"""Held while an event gets its bell."""


class CpuEvent:
    """An event on a CPU: the time at which a thread marked it done.

    It has something to wait on only once somebody waits: of a flight's eight events most are done before anybody asks.
    """

    __slots__ = ("_bell", "_done_at")

    def __init__(self) -> None:
        """Make an event that is not done."""
        self._done_at = 0.0
        self._bell: threading.Event | None = None

    @property
    def done_at(self) -> float:
        """When the event was done, by `time.monotonic()`; 0 before."""
        return self._done_at

    def set_done(self) -> None:
        """Mark the event done, now."""
        self._done_at = time.monotonic()
        if self._bell is not None:  # read after the time was written: whoever brings a bell looks at the time afterwards
            self._bell.set()

    def is_done(self) -> bool:
        """Whether the work before the event has run."""
        return self._done_at > 0

    def wait(self) -> None:
        """Sleep until the event is done."""
        if self.is_done():
            return
        with _BELLS:
            self._bell = self._bell or threading.Event()
        if not self.is_done():
            self._bell.wait()

    def seconds_since(self, earlier: Event) -> float:
        """Give the time from `earlier` to this event, in seconds."""
        assert isinstance(earlier, CpuEvent)
        return self.done_at - earlier.done_at


def _set_done(event: Event) -> None:
    assert isinstance(event, CpuEvent)
    event.set_done()


class HereLane:
    """The lane of the calling thread: work runs at once, so a tiny member pays for no thread hop.

    `wait_for` waits on the spot, for there is nobody else to do it.
    """

    name = "here"

    def run(self, work: Work) -> None:
        """Do the work now."""
        work()

    def record(self, event: Event) -> None:
        """Mark the event done: all earlier work has run."""
        _set_done(event)

    def wait_for(self, event: Event) -> None:
        """Wait here until the event is done."""
        event.wait()

    def close(self) -> None:
        """Give back nothing: the thread is the caller's."""


class ThreadLane:
    """A lane with a worker thread, which starts with the lane's first work."""

    def __init__(self, name: str, compute_threads: int) -> None:
        """Name the lane and say how many threads torch may use for one of its operations."""
        self.name = name
        self._compute_threads = compute_threads
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Work) -> None:
        """Queue the work for the lane's thread."""
        if self._thread is None:
            # A daemon: a member that never returns must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name=f"lane-{self.name}", daemon=True)
            self._thread.start()
        self._queue.put(work)

    def record(self, event: Event) -> None:
        """Mark the event done once everything queued so far has run."""
        self.run(lambda: _set_done(event))

    def wait_for(self, event: Event) -> None:
        """Let the lane's thread wait for the event before it goes on."""
        if not event.is_done():
            self.run(event.wait)

    def close(self) -> None:
        """End the lane's thread behind its queued work."""
        self._queue.put(None)

    def _work(self) -> None:
        torch.set_num_threads(self._compute_threads)
        _give_way()
        with torch.inference_mode():
            while (work := self._queue.get()) is not None:
                try:
                    work()
                except Exception:  # a defect; the lane's other work must not die of it
                    logger.exception("work on lane %s raised", self.name)
                del work  # which holds its flight's rows, and the next may be long in coming


NICER = 5


def _give_way() -> None:
    """Make the calling thread nicer to the others; on Linux, niceness is a thread's own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICER)


def _model_name() -> str:
    """Name the processor, where the kernel says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class CpuDevice:
    """The CPU as a device; `lanes` says among how many lanes the cores are divided."""

    runs_inline = True
    can_capture = False

    def __init__(self, lanes: int) -> None:
        """Divide the usable cores among `lanes` lanes, at least one each."""
        self.torch_device = torch.device("cpu")
        self._cores = usable_cores()
        self.fingerprint = f"cpu {_model_name()} {torch.backends.cpu.get_cpu_capability()} {self._cores} cores {lanes} lanes"
        self._cores_per_lane = max(1, self._cores // max(1, lanes))
        self._here = HereLane()
        self.serial_threads = self._cores

    def lane(self, name: str, is_high: bool = False) -> ThreadLane:
        """Make a lane with a worker thread of its own; a CPU's threads are all alike."""
        return ThreadLane(name, self._cores_per_lane)

    def serial_lane(self) -> HereLane:
        """Give the launching thread itself; warm-up finds out with how many threads it computes best."""
        return self._here

    def copy_lane(self) -> HereLane:
        """Give the launching thread itself: staging is already device memory."""
        return self._here

    def event(self) -> CpuEvent:
        """Make an event that is not done."""
        return CpuEvent()

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make one buffer that is both: nothing needs copying."""
        buffer = torch.zeros(shape, dtype=dtype)
        return buffer, buffer

    def thread_choices(self) -> tuple[int, ...]:
        """One thread, or all cores: tiny operations gain nothing from more, and lose much when another core is busy."""
        return (1, self._cores) if self._cores > 1 else (1,)

    def set_serial_threads(self, count: int) -> None:
        """Let launching threads, the calling one among them, compute with `count` threads."""
        self.serial_threads = count
        self.prepare_thread()

    def graph_pool(self) -> object:
        """Refuse: a CPU has no graphs."""
        raise NotImplementedError("a CPU has no graphs")

    def find_sync(self, lane: Lane, work: Callable[[], list[Tensor]]) -> str:
        """Refuse: a CPU has no graphs."""
        raise NotImplementedError("a CPU has no graphs")

    def capture(self, lane: Lane, work: Callable[[], list[Tensor]], pool: object) -> Graph:
        """Refuse: a CPU has no graphs."""
        raise NotImplementedError("a CPU has no graphs")

    def find_loss(self) -> str:
        """A CPU is not lost before the process is."""
        return ""

    def memory_bytes(self) -> int:
        """Count nothing: the memory is the host's own."""
        return 0

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Count the storages that the work's operations make; what one takes and frees within itself is not seen."""
        with MemoryMeter() as meter:
            work()
        return int(meter.peak_bytes)

    def give_way(self) -> None:
        """Let the calling thread's computing go behind parsing and answering: more rows then fly together, for less work each."""
        _give_way()

    def prepare_thread(self) -> None:
        """Give the launching thread its number of threads to compute with; torch keeps it per thread."""
        torch.set_num_threads(self.serial_threads)

"""Streams on a CPU: worker threads, with events of their own because torch's CPU events cannot be recorded or waited on."""

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from .device import CannotCapture, Event, Execution, Graph, Stream, UnrecordedEvent, Work

logger = logging.getLogger(__name__)

COMPUTING_NICENESS = 5
"""Computing goes behind parsing and answering: more requests then share a batch, for less work each."""


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CpuEvent:
    """An event on a CPU: the time at which a thread marked it done.

    The lock that a waiting thread sleeps on is made only when one waits: most events are done before anything asks.
    """

    __slots__ = ("_done_at", "_waking", "is_recorded")

    _making_waking = threading.Lock()

    def __init__(self) -> None:
        """Make an event that is not recorded."""
        self.is_recorded = False
        self._done_at = 0.0
        self._waking: threading.Event | None = None

    @property
    def done_at(self) -> float:
        """When the event was done, by `time.monotonic()`; 0 before."""
        return self._done_at

    def set_done(self) -> None:
        """Mark the event recorded and done, now."""
        self.is_recorded = True
        self._done_at = time.monotonic()
        # Read after the time was written: a thread that makes `_waking` looks at the time afterwards.
        if self._waking is not None:
            self._waking.set()

    def is_done(self) -> bool:
        """Whether the work before the event has run."""
        return self._done_at > 0

    def wait(self) -> None:
        """Sleep until the event is done."""
        if self.is_done():
            return
        with self._making_waking:
            self._waking = self._waking or threading.Event()
        if not self.is_done():
            self._waking.wait()

    def seconds_since(self, earlier: Event) -> float:
        """Return the time from `earlier` to this event, in seconds."""
        assert isinstance(earlier, CpuEvent)
        return self.done_at - earlier.done_at


def _cpu_event(event: Event) -> CpuEvent:
    assert isinstance(event, CpuEvent)
    return event


class InlineStream:
    """The stream of the calling thread: work runs at once, so a tiny member pays for no thread hop.

    `wait_event` waits in place, for no other thread can.
    """

    def __init__(self, name: str) -> None:
        """Name the stream."""
        self.name = name

    def submit(self, work: Work) -> None:
        """Do the work now."""
        work()

    def record(self, event: Event) -> None:
        """Mark the event done: all earlier work has run."""
        _cpu_event(event).set_done()

    def wait_event(self, event: Event) -> None:
        """Wait in place until the event is done; raises UnrecordedEvent."""
        if not event.is_recorded:
            raise UnrecordedEvent(self.name)
        event.wait()

    def close(self) -> None:
        """End nothing: the thread is the caller's."""


class ThreadStream:
    """A stream with a worker thread, which starts with the stream's first work."""

    def __init__(self, name: str, compute_threads: int) -> None:
        """Name the stream and say how many threads torch may use for one of its operations."""
        self.name = name
        self._compute_threads = compute_threads
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, work: Work) -> None:
        """Queue the work for the stream's thread."""
        with self._starting:
            if self._thread is None:
                # A daemon: a member that never returns must not keep the process from ending.
                self._thread = threading.Thread(target=self._work, name=f"stream-{self.name}", daemon=True)
                self._thread.start()
        self._queue.put(work)

    def record(self, event: Event) -> None:
        """Mark the event done once everything queued so far has run."""
        _cpu_event(event).is_recorded = True
        self.submit(_cpu_event(event).set_done)

    def wait_event(self, event: Event) -> None:
        """Let the stream's thread wait for the event before it goes on; raises UnrecordedEvent."""
        if not event.is_recorded:
            raise UnrecordedEvent(self.name)
        if not event.is_done():
            self.submit(event.wait)

    def close(self) -> None:
        """End the stream's thread behind its queued work."""
        self._queue.put(None)

    def _work(self) -> None:
        torch.set_num_threads(self._compute_threads)
        _lower_priority()
        with torch.inference_mode():
            while (work := self._queue.get()) is not None:
                try:
                    work()
                except Exception:  # a defect; the stream's other work must not die of it
                    logger.exception("work on stream %s raised", self.name)
                del work  # it holds its batch's inputs, and the next work may be long in coming


def _lower_priority() -> None:
    """Lower the calling thread's priority, unless it is lower already; on Linux, niceness is a thread's own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = max(COMPUTING_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))  # to raise it again takes a privilege
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _model_name() -> str:
    """Name the processor, where the kernel says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class CpuDevice:
    """The CPU as a device; `streams` says among how many streams the cores are divided."""

    default_execution: Execution = "serial"  # measured as fast as streams or faster, for pairs of every size
    can_capture = False

    def __init__(self, streams: int) -> None:
        """Divide the cores: one is left to the event loop and the preprocessing, where there are several."""
        self.torch_device = torch.device("cpu")
        cores = usable_cores()
        # torch's own number is smaller where OMP_NUM_THREADS says so.
        self._compute_threads = max(1, min(cores - 1, torch.get_num_threads()))
        self._threads_per_stream = max(1, self._compute_threads // max(1, streams))
        self.description = f"cpu {_model_name()}, {torch.backends.cpu.get_cpu_capability()}, {cores} cores"

    def stream(self, name: str, is_high: bool = False) -> ThreadStream:
        """Make a stream with a worker thread of its own; a CPU's threads are all alike."""
        return ThreadStream(name, self._threads_per_stream)

    def launch_stream(self, name: str) -> InlineStream:
        """Return the launching thread itself as a stream."""
        return InlineStream(name)

    def event(self) -> CpuEvent:
        """Make an event that is not recorded."""
        return CpuEvent()

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make one tensor that is both: nothing needs copying."""
        tensor = torch.zeros(shape, dtype=dtype)
        return tensor, tensor

    def capture(
        self, stream: Stream, work: Callable[[], list[Tensor]], pool: object | None = None, *, is_serving: bool = False
    ) -> Graph:
        """Refuse: a CPU has no graphs."""
        raise CannotCapture("a CPU has no graphs")

    def graph_pool(self) -> object:
        """Return nothing: a CPU has no graphs."""
        return None

    def find_loss(self) -> str:
        """Return nothing: a CPU is not lost before the process is."""
        return ""

    def memory_bytes(self) -> int:
        """Count nothing: the memory is the host's own."""
        return 0

    def memory_use(self) -> Mapping[str, float]:
        """Return {}: it is the host's."""
        return {}

    def utilization(self) -> None:
        """Return None: the process's own CPU time says it."""
        return

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Count nothing: the memory is the host's own."""
        work()
        return 0

    def prepare_thread(self, *, is_launching: bool = False) -> None:
        """Set the calling thread's number of intra-op threads, which torch keeps per thread, and a launching one's priority."""
        torch.set_num_threads(self._compute_threads)
        if is_launching:
            _lower_priority()

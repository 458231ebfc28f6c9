"""Streams on an NVIDIA GPU: CUDA streams, joined by CUDA events. Graphs are in `cuda_graph`."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .cuda_graph import CudaGraph, find_sync
from .device import CannotCapture, Event, Execution, Stream, UnrecordedEvent, Work

logger = logging.getLogger(__name__)


class CudaEvent:
    """A CUDA event that knows whether it was recorded: CUDA itself calls an unrecorded event done, and waits for it for nothing."""

    __slots__ = ("_torch_event", "is_recorded")

    def __init__(self) -> None:
        """Make an event that keeps its time and on which a waiting thread sleeps instead of spinning."""
        self._torch_event = torch.cuda.Event(enable_timing=True, blocking=True)
        self.is_recorded = False

    @property
    def done_at(self) -> None:
        """Unknown: the GPU has a clock of its own."""
        return

    def record(self, stream: torch.cuda.Stream) -> None:
        """Record the event on `stream`."""
        self._torch_event.record(stream)
        self.is_recorded = True

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let later work of `stream` wait on the device until the event is done; raises UnrecordedEvent."""
        if not self.is_recorded:
            raise UnrecordedEvent(str(stream))
        stream.wait_event(self._torch_event)

    def is_done(self) -> bool:
        """Ask the driver whether the work before the event has run; True on a lost device, on which it never will."""
        if not self.is_recorded:
            return False
        try:
            return bool(self._torch_event.query())
        except RuntimeError:  # the error sticks: who reads the outputs gets it, and `find_loss` says it once
            return True

    def wait(self) -> None:
        """Sleep until the event is done; releases the GIL."""
        self._torch_event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        """Return the device time from `earlier` to this event, in seconds."""
        assert isinstance(earlier, CudaEvent)
        return float(earlier._torch_event.elapsed_time(self._torch_event)) / 1000.0


def _cuda_event(event: Event) -> CudaEvent:
    assert isinstance(event, CudaEvent)
    return event


class CudaStream:
    """A CUDA stream. Queueing work launches its kernels and returns."""

    def __init__(self, name: str, device: torch.device, is_high: bool = False) -> None:
        """Make the stream on `device`."""
        self.name = name
        self.cuda_stream = torch.cuda.Stream(device, priority=-1 if is_high else 0)

    def submit(self, work: Work) -> None:
        """Launch the work's kernels on the stream."""
        with torch.cuda.stream(self.cuda_stream):
            work()

    def record(self, event: Event) -> None:
        """Record the event behind everything queued so far."""
        _cuda_event(event).record(self.cuda_stream)

    def wait_event(self, event: Event) -> None:
        """Hold later work of the stream until the event is done, on the device; raises UnrecordedEvent."""
        _cuda_event(event).hold(self.cuda_stream)

    def close(self) -> None:
        """End nothing: torch keeps its streams in a pool."""


def _cuda_stream(stream: Stream) -> torch.cuda.Stream:
    assert isinstance(stream, CudaStream)
    return stream.cuda_stream


class CudaDevice:
    """One GPU as a device, with pinned host memory for staging."""

    default_execution: Execution = "streams"
    can_capture = True

    def __init__(self, torch_device: torch.device) -> None:
        """Use the GPU `torch_device`, for instance `cuda:0`."""
        self.torch_device = torch_device
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds convolutions; here "fp32" means it, and "tf32" asks for it
        driver = Path("/proc/driver/nvidia/version")
        version = driver.read_text(encoding="utf-8").splitlines()[0] if driver.is_file() else "unknown driver"
        self.description = f"{torch_device} {torch.cuda.get_device_name(torch_device)}, {version}, CUDA {torch.version.cuda}"

    def stream(self, name: str, is_high: bool = False) -> CudaStream:
        """Make a stream of its own."""
        return CudaStream(name, self.torch_device, is_high)

    def launch_stream(self, name: str) -> CudaStream:
        """Make a stream of its own: launching on it costs the same as on any other."""
        return CudaStream(name, self.torch_device)

    def event(self) -> CudaEvent:
        """Make an event that is not recorded."""
        return CudaEvent()

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make a pinned host tensor and one on the device, so that copies between them do not stop the host."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True), torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def capture(
        self, stream: Stream, work: Callable[[], list[Tensor]], pool: object | None = None, *, is_serving: bool = False
    ) -> CudaGraph:
        """Warm `work` up on `stream` and capture it; raises CannotCapture where it waits for the device.

        While the server `is_serving` nothing is looked for: that takes a switch of the whole process.
        """
        sync = "" if is_serving else find_sync(_cuda_stream(stream), work)
        if sync:
            raise CannotCapture(f"it waits for the device: {sync}")
        return CudaGraph(_cuda_stream(stream), work, pool, is_serving)

    def graph_pool(self) -> object:
        """Make a memory pool for graphs that never run at the same time."""
        return torch.cuda.graph_pool_handle()

    def find_loss(self) -> str:
        """Ask the driver: an error such as an illegal access sticks, and every call to CUDA repeats it until the process ends."""
        try:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.torch_device))
            event.query()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return ""

    def memory_bytes(self) -> int:
        """Count what torch's allocator has reserved after giving back what it only kept, cuBLAS's workspaces included."""
        torch.cuda.synchronize(self.torch_device)
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_reserved(self.torch_device))

    def memory_use(self) -> Mapping[str, float]:
        """Ask the driver and torch's allocator; neither waits for the device. Returns {} on a device that is lost."""
        try:
            free, total = torch.cuda.mem_get_info(self.torch_device)
        except RuntimeError:
            return {}
        return {"total": total, "used": total - free, "allocated": torch.cuda.memory_allocated(self.torch_device)}

    def utilization(self) -> float | None:
        """Ask NVML, where its package (nvidia-ml-py) and its library are there."""
        try:
            return float(torch.cuda.utilization(self.torch_device)) / 100
        except Exception:  # the package is missing, or NVML refuses by one of its own errors: on a part of a GPU, for instance
            return None

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Ask torch's allocator for the most that was allocated at once, beyond what was before."""
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        work()
        torch.cuda.synchronize(self.torch_device)
        return int(torch.cuda.max_memory_allocated(self.torch_device)) - before

    def prepare_thread(self, *, is_launching: bool = False) -> None:
        """Make the GPU the calling thread's current device."""
        torch.cuda.set_device(self.torch_device)

"""Lanes on an NVIDIA GPU: one CUDA stream each, joined by CUDA events."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .lane import Event, Lane, Work


class CudaEvent:
    """A CUDA event that knows whether it was recorded: CUDA itself calls an unrecorded event done."""

    __slots__ = ("_is_recorded", "_torch_event")

    def __init__(self) -> None:
        """Make an event that keeps its time and on which a waiting thread sleeps instead of spinning."""
        self._torch_event = torch.cuda.Event(enable_timing=True, blocking=True)
        self._is_recorded = False

    @property
    def done_at(self) -> None:
        """Unknown: the GPU has a clock of its own."""
        return

    def record(self, stream: torch.cuda.Stream) -> None:
        """Record the event on `stream`."""
        self._torch_event.record(stream)
        self._is_recorded = True

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let later work of `stream` wait on the device until the event is done."""
        stream.wait_event(self._torch_event)

    def is_done(self) -> bool:
        """Whether the work before the event has run; asks the driver and returns at once."""
        return self._is_recorded and self._torch_event.query()

    def wait(self) -> None:
        """Sleep until the event is done; releases the GIL."""
        self._torch_event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        """Give the device time from `earlier` to this event, in seconds."""
        assert isinstance(earlier, CudaEvent)
        return float(earlier._torch_event.elapsed_time(self._torch_event)) / 1000.0


class CudaLane:
    """A lane on a GPU: a stream. Queueing work launches its kernels and returns."""

    def __init__(self, name: str, device: torch.device, is_high: bool = False) -> None:
        """Make the lane's stream on `device`."""
        self.name = name
        self.stream = torch.cuda.Stream(device, priority=-1 if is_high else 0)

    def run(self, work: Work) -> None:
        """Launch the work's kernels on the lane's stream."""
        with torch.cuda.stream(self.stream):
            work()

    def record(self, event: Event) -> None:
        """Record the event behind everything queued so far."""
        assert isinstance(event, CudaEvent)
        event.record(self.stream)

    def wait_for(self, event: Event) -> None:
        """Hold later work of the stream until the event is done, on the device."""
        assert isinstance(event, CudaEvent)
        event.hold(self.stream)

    def close(self) -> None:
        """Give back nothing: torch keeps its streams in a pool."""


class CudaGraph:
    """One CUDA graph; its outputs lie in the graph's own memory pool, and so do cuBLAS's workspaces."""

    def __init__(self, stream: torch.cuda.Stream, work: Callable[[], list[Tensor]], pool: Any) -> None:
        """Capture `work`, beginning on `stream`."""
        self._graph = torch.cuda.CUDAGraph()
        # torch keeps a workspace per stream: all graphs captured on one would write into it, even those that run at the same time.
        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self.outputs = work()
        torch._C._cuda_clearCublasWorkspaces()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


def _set_sync_mode(mode: str) -> None:
    """Say what torch does, in all threads, where an operation waits for the device: "error" or "default"."""
    with warnings.catch_warnings():  # once in a process, torch warns that it does not find them all
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)


def _stream(lane: Lane) -> torch.cuda.Stream:
    assert isinstance(lane, CudaLane)
    return lane.stream


class CudaDevice:
    """One GPU as a device: streams for lanes, pinned host memory for staging."""

    runs_inline = False
    can_capture = True
    serial_threads = 1

    def __init__(self, torch_device: torch.device) -> None:
        """Use the GPU `torch_device`, for instance `cuda:0`."""
        self.torch_device = torch_device
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds convolutions; here "fp32" means it, and "tf32" asks for it
        driver = Path("/proc/driver/nvidia/version")
        version = driver.read_text(encoding="utf-8").splitlines()[0] if driver.is_file() else "unknown driver"
        self.fingerprint = f"cuda {torch.cuda.get_device_name(torch_device)} {version} {torch.version.cuda}"
        self._serial = CudaLane("serial", torch_device)
        self._copy = CudaLane("copy", torch_device)

    def lane(self, name: str, is_high: bool = False) -> CudaLane:
        """Make a lane with a stream of its own."""
        return CudaLane(name, self.torch_device, is_high)

    def serial_lane(self) -> CudaLane:
        """Give the one stream on which the serial plan computes."""
        return self._serial

    def copy_lane(self) -> CudaLane:
        """Give the stream on which inputs travel to the device."""
        return self._copy

    def event(self) -> CudaEvent:
        """Make an event that is not recorded."""
        return CudaEvent()

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make a pinned host buffer and its twin on the device, so that copies between them do not stop the host."""
        return (
            torch.zeros(shape, dtype=dtype, pin_memory=True),
            torch.zeros(shape, dtype=dtype, device=self.torch_device),
        )

    def thread_choices(self) -> tuple[int, ...]:
        """One: the launching thread computes nothing itself."""
        return (1,)

    def set_serial_threads(self, count: int) -> None:
        """Nothing to set."""

    def graph_pool(self) -> object:
        """Make a memory pool for graphs that never run at the same time."""
        return torch.cuda.graph_pool_handle()

    def find_sync(self, lane: Lane, work: Callable[[], list[Tensor]]) -> str:
        """Do `work` three times, the last time with torch raising wherever an operation waits for the device."""
        torch.cuda.synchronize(self.torch_device)
        with torch.cuda.stream(_stream(lane)):
            work()
            work()  # libraries choose their algorithms in the first calls
            torch.cuda.synchronize(self.torch_device)
            try:
                _set_sync_mode("error")
                work()
            except RuntimeError as error:
                return str(error).splitlines()[0]
            finally:
                _set_sync_mode("default")
                torch.cuda.synchronize(self.torch_device)
        return ""

    def capture(self, lane: Lane, work: Callable[[], list[Tensor]], pool: object) -> CudaGraph:
        """Capture `work`, beginning on `lane`'s stream."""
        return CudaGraph(_stream(lane), work, pool)

    def find_loss(self) -> str:
        """Ask the driver: an error such as an illegal access sticks, and every call to CUDA repeats it until the process ends."""
        try:
            event = torch.cuda.Event()
            event.record(self._copy.stream)
            event.query()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return ""

    def memory_bytes(self) -> int:
        """Count what torch's allocator has reserved, less what it only keeps for later, and less cuBLAS's workspaces."""
        torch.cuda.synchronize(self.torch_device)
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_reserved(self.torch_device))

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Ask torch's allocator for the most that was allocated at once, beyond what was before."""
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        work()
        torch.cuda.synchronize(self.torch_device)
        return int(torch.cuda.max_memory_allocated(self.torch_device)) - before

    def give_way(self) -> None:
        """Nothing to do: what launches on a GPU leaves the cores alone."""

    def prepare_thread(self) -> None:
        """Make the GPU the calling thread's current device."""
        torch.cuda.set_device(self.torch_device)

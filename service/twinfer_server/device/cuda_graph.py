"""CUDA graphs: work captured once and replayed with one launch.

A graph's tensors lie in its own memory pool, so it computes from the same addresses into the same addresses each time.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class CudaGraph:
    """One captured piece of work."""

    def __init__(self, stream: torch.cuda.Stream, work: Callable[[], list[Tensor]], pool: Any, is_serving: bool) -> None:
        """Capture `work` on `stream`, into the memory of `pool` (None: its own).

        While the server `is_serving` other threads go on using the device: only this thread's calls are held to what a capture
        allows, and the workspaces of the others stay.
        """
        self._graph = torch.cuda.CUDAGraph()
        # torch keeps a workspace per stream: all graphs captured on one would write into it, even those that run at the same time.
        if not is_serving:
            torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.outputs = work()
        if not is_serving:
            torch._C._cuda_clearCublasWorkspaces()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


def find_sync(stream: torch.cuda.Stream, work: Callable[[], list[Tensor]]) -> str:
    """Do `work` three times, the last time with torch raising wherever an operation waits for the device.

    The first two let libraries choose their algorithms. Returns where it waits, or an empty text.
    """
    stream.synchronize()
    with torch.cuda.stream(stream):
        work()
        work()
        stream.synchronize()
        try:
            _set_sync_mode("error")
            work()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            _set_sync_mode("default")
            stream.synchronize()
    return ""


def _set_sync_mode(mode: str) -> None:
    """Say what torch does, in all threads, where an operation waits for the device: "error" or "default"."""
    with warnings.catch_warnings():  # torch warns once in a process that it does not find them all
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)

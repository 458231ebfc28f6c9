"""A device with graphs for machines without a GPU: captured work is done again at each replay, into the same tensors.

It keeps host and device buffers apart, so that whatever is not copied is seen.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from twinfer_server.device import CannotCapture, CpuDevice, Execution, InlineStream, Stream


class ReplayedWork:
    """What a graph is here: the work itself, and how it was captured."""

    def __init__(self, work: Callable[[], list[Tensor]], stream: Stream, pool: object, is_serving: bool) -> None:
        self._work = work
        self.outputs = work()
        self.stream, self.pool, self.is_serving = stream, pool, is_serving
        self.replays = 0
        self.is_refused = False

    def replay(self) -> None:
        if self.is_refused:
            raise RuntimeError("the graph could not be launched")
        self.replays += 1
        for output, again in zip(self.outputs, self._work(), strict=True):
            output.copy_(again)


class CapturingDevice(CpuDevice):
    """A CPU that says it has graphs; every stream runs at once on the calling thread, as queueing does on a GPU.

    `refusal` says why nothing can be captured; `captures_left` is how many more captures do not break off.
    """

    default_execution: Execution = "streams"
    can_capture = True

    def __init__(self, refusal: str = "") -> None:
        super().__init__(streams=2)
        self.refusal = refusal
        self.captures_left = float("inf")
        self.graphs: list[ReplayedWork] = []
        self.prepared: set[int] = set()
        """The threads that have been set up for device work."""

    def stream(self, name: str, is_high: bool = False) -> InlineStream:  # type: ignore[override]
        return InlineStream(name)

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def graph_pool(self) -> object:
        return object()

    def prepare_thread(self, *, is_launching: bool = False) -> None:
        super().prepare_thread(is_launching=is_launching)
        self.prepared.add(threading.get_ident())

    def capture(
        self, stream: Stream, work: Callable[[], list[Tensor]], pool: object | None = None, *, is_serving: bool = False
    ) -> ReplayedWork:  # fmt: skip
        if self.refusal:
            raise CannotCapture(f"it waits for the device: {self.refusal}")
        if not self.captures_left:
            raise RuntimeError("operation not permitted")
        self.captures_left -= 1
        self.graphs.append(ReplayedWork(work, stream, pool, is_serving))
        return self.graphs[-1]

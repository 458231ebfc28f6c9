"""A device with graphs for machines without a GPU: captured work is done again at each replay, into the same tensors.

It keeps host and device buffers apart, so that whatever forgets to travel is seen.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from twinfer_server.device import CpuDevice, HereLane, Lane


class ReplayedWork:
    """What a capture is here: the work itself."""

    def __init__(self, work: Callable[[], list[Tensor]]) -> None:
        self._work = work
        self.outputs = [output.clone() for output in work()]
        self.replays = 0
        self.is_refused = False

    def replay(self) -> None:
        if self.is_refused:
            raise RuntimeError("the graph could not be launched")
        self.replays += 1
        for output, again in zip(self.outputs, self._work(), strict=True):
            output.copy_(again)


class CapturingDevice(CpuDevice):
    """A CPU that says it has graphs; every lane runs at once on the calling thread, as queueing does on a GPU."""

    can_capture = True

    def __init__(self, refusal: str = "") -> None:
        super().__init__(lanes=2)
        self.refusal = refusal
        self.graphs: list[ReplayedWork] = []
        self.captures_left: float = float("inf")
        """How many more captures succeed."""
        self.prepared: set[int] = set()
        """The threads that have been set up for launching."""

    def lane(self, name: str, is_high: bool = False) -> Lane:  # type: ignore[override]
        return HereLane()

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def graph_pool(self) -> object:
        return object()

    def find_sync(self, lane: Lane, work: Callable[[], list[Tensor]]) -> str:
        work()
        return self.refusal

    def prepare_thread(self) -> None:
        super().prepare_thread()
        self.prepared.add(threading.get_ident())

    def capture(self, lane: Lane, work: Callable[[], list[Tensor]], pool: object) -> ReplayedWork:
        if not self.captures_left:
            raise RuntimeError("operation not permitted")
        self.captures_left -= 1
        self.graphs.append(ReplayedWork(work))
        return self.graphs[-1]

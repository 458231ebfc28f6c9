"""An ensemble in this process, without a server: batches of made-up requests, timed. All that benchmarks know of the executor."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from twinfer_server.device import Device, Execution, open_device
from twinfer_server.executor import Ensemble, load_ensemble, make_synthetic_request, warm_up
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.types import Request

SEEDS = 4


@dataclass(frozen=True, slots=True)
class Timed:
    """One batch, in seconds: fork to join, launch to completion, what the host took to launch it, and each member's own."""

    join: float
    batch: float
    launch: float
    members: Mapping[str, float]


class Ours:
    """A loaded, warm ensemble. Use it on the thread that made it."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        """Load and warm the ensemble in `folder`, whose code is trusted."""
        self.device: Device = open_device(device, streams=2)
        self.device.prepare_thread(is_launching=True)
        self.ensemble: Ensemble = load_ensemble(folder, self.device, Trust.read(True, ()), InputLimits())
        began = time.perf_counter()
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"warming up {self.ensemble.spec.name}", total=None)
            warm_up(self.ensemble, lambda done, total: bar.update(task, completed=done, total=total))
        self.warm_up_seconds = time.perf_counter() - began
        self.names = [member.name for member in self.ensemble.members]
        self._made: dict[tuple[int, tuple[str, ...]], list[Request]] = {}

    def requests(self, count: int, members: Sequence[str] = ()) -> list[Request]:
        """Return made-up requests with input for these members, the same ones each time; for all where none is named."""
        key = count, tuple(members or self.names)
        if key not in self._made:
            chosen = [member for member in self.ensemble.members if member.name in key[1]]
            samples = [
                {member.index: member.example(seed, member.token_sizes[-1]) for member in chosen}
                for seed in range(min(SEEDS, count))
            ]
            self._made[key] = [make_synthetic_request(samples[number % len(samples)]) for number in range(count)]
        return self._made[key]

    def run(self, count: int, execution: Execution, members: Sequence[str] = ()) -> Timed:
        """Run a batch of so many requests and wait for it; raises RuntimeError where something in it failed."""
        requests = self.requests(count, members)
        with torch.inference_mode():
            batch = self.ensemble.compute(requests, execution)
            try:
                join = batch.join_seconds
                if join is None or batch.result is None:
                    causes = [error.text for run in batch.runs for error in run.errors.values()]
                    raise RuntimeError(f"a batch failed: {causes}; the log has the rest")
                return Timed(
                    join, batch.completed.seconds_since(batch.started), batch.launch_ended_at - batch.launched_at,
                    {run.member.name: run.device_seconds or join for run in batch.runs},
                )  # fmt: skip
            finally:
                self.ensemble.release(batch)

    def use_streams(self, make: Callable[[], "torch.cuda.Stream"]) -> None:
        """Have each member run on a CUDA stream that `make` makes, from now on."""
        for stream in self.ensemble.streams["streams"].members:
            stream.cuda_stream = make()  # type: ignore[attr-defined]  # only CUDA's streams have one

    @property
    def graphs(self) -> dict[str, str]:
        """Say for each member whether it has CUDA graphs, or why not."""
        return {member.name: member.no_graph_reason or "yes" for member in self.ensemble.members}

    def close(self) -> None:
        """End the streams' threads."""
        self.ensemble.close()

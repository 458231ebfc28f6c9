"""Members whose answers one can check by eye, and which misbehave when a test tells them to.

They live in the test's process: a test makes one, writes an ensemble of it, serves that folder, and holds the member's gate.
"""

import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.servers import write_ensemble
from twinfer import Response
from twinfer_server.device import CpuDevice, Device, Execution
from twinfer_server.executor import Bucket, Ensemble, LatencyTable, load_ensemble
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust

registered = SimpleNamespace()
"""Where the `python:` loader finds the models of the tests."""

_numbers = itertools.count()

NAN_BELOW = -100.0


class Opinion(nn.Module):
    """Answers the logits [x, -x], so that class 0 has the probability 1 / (1 + exp(-2x)).

    A row below `NAN_BELOW` gets the logarithm of its negative number: NaN; while `is_sick` every row does. While the gate is closed
    no call comes back. While `error` is set every call raises it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.is_sick = False
        self.batches: list[list[float]] = []
        self.most_at_once = 0
        self._gate = threading.Event()
        self._gate.set()
        self._inside = 0
        self._lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
            self.batches.append(x[:, 0].tolist())
        try:
            self.entered.set()
            self._gate.wait()
            if self.error is not None:
                raise self.error
            x = torch.where(x < NAN_BELOW, x.log(), x * (torch.nan if self.is_sick else 1.0))
            return torch.cat([x, -x], dim=1)
        finally:
            with self._lock:
                self._inside -= 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the gate closed; `entered` is set when a call stands before it."""
        self.entered.clear()
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()

    def release(self) -> None:
        """Open the gate before the end of `held`."""
        self._gate.set()

    def forget(self) -> None:
        """Forget the calls of warm-up."""
        self.batches.clear()
        self.most_at_once = 0


def chance(*logits: float) -> float:
    """Give class 0's probability after averaging what opinions of these x believe."""
    return math.fsum(1 / (1 + math.exp(-2 * x)) for x in logits) / len(logits)


def register(model: object) -> str:
    """Let the loader find `model`; gives the source to write into an ensemble's file."""
    name = f"model_{next(_numbers)}"
    setattr(registered, name, model)
    return f"python:tests.models:registered.{name}"


def write_members(folder: Path, members: Mapping[str, object], head: str = "", tail: str = "", max_batch_size: int = 4) -> Path:
    """Write an ensemble of models that take one number each, in an input of the member's own name.

    `head` goes before the members (keys of the ensemble itself), `tail` behind the batching's keys.
    """
    lines = ['name = "pair"', "version = 1", 'task = "classification"', head]
    for name, model in members.items():
        source = model if isinstance(model, str) else register(model)
        lines += [f"[members.{name}]", f'model = "{source}"', f"[members.{name}.input.{name}]"]
        lines += ['kind = "tensor"', 'dtype = "float32"', "shape = [1]"]
    lines += ["[fusion]", 'method = "weighted_mean"', "[batching]", f"max_batch_size = {max_batch_size}", tail]
    return write_ensemble(folder, "\n".join(lines))


def edit_spec(folder: Path, old: str, new: str) -> Path:
    """Put `new` in the place of every `old` in a folder's `ensemble.toml`."""
    spec = folder / "ensemble.toml"
    text = spec.read_text(encoding="utf-8")
    assert old in text
    spec.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def first_chance(answer: Response) -> float:
    """Give the probability of class 0 in an answer of opinions."""
    return next(scored.probability for scored in answer.prediction.classes if scored.index == 0)


def states(answer: Response) -> dict[str, str]:
    """Give what became of each member, by name."""
    return {name: str(member.state) for name, member in answer.members.items()}


def number(x: float) -> NDArray[np.float32]:
    """Make the input of an opinion."""
    return np.array([x], dtype=np.float32)


def load_members(folder: Path, execution: Execution = "serial", device: Device | None = None, seconds: float = 0.001) -> Ensemble:
    """Load an ensemble of trusted models, as if warm-up had found that each member takes `seconds`."""
    ensemble = load_ensemble(folder, device or CpuDevice(streams=2), Trust(runs_any_code=True), InputLimits())
    ensemble.execution = execution
    ensemble.latencies = LatencyTable(
        {member.index: dict.fromkeys(map(Bucket, (1, member.max_samples)), seconds) for member in ensemble.members}
    )
    for member in ensemble.members:
        if isinstance(member.model.module, Opinion):
            member.model.module.forget()
    return ensemble


def as_any(value: object) -> Any:
    """Hand a value to a parameter that types do not foresee."""
    return value

"""Pairs of models: as an ensemble folder, as requests, and as what plain torch answers to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.models import CLASSES, Convolutions, Doubled, Raised, Slept, Transformer

MAX_BATCH_SIZE = 32
"""The most requests that any server computes at once."""

DELAY_SECONDS = 0.002
"""How long Mosec and Triton wait for more requests."""

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models by the name of their only input, and what that input looks like: dtype and shape of one sample."""

    name: str
    models: Mapping[str, Callable[[], nn.Module]]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]

    def write(self, folder: Path, files: Mapping[str, str] | None = None, head: str = "", batching: str = "") -> Path:
        """Write the ensemble; return its folder.

        `files` has the models' file names by member; without, the members are Python, and it takes `--trust-code` to serve them.
        `head` is added to the top level of ensemble.toml, and `batching` to its table, which sets `max_batch_size` without it.
        """
        lines = [f'name = "{self.name}"', "version = 1", 'task = "classification"', head]
        for name, model in self.models.items():
            dtype, shape = self.inputs[name]
            lines += [
                f"[members.{name}]",
                f'model = "{files[name] if files else f"python:{model.__module__}:{model.__qualname__}"}"',
            ]
            lines += [f"[members.{name}.input.{name}]", 'kind = "tensor"', f'dtype = "{dtype}"', f"shape = {list(shape)}"]
        lines += ["[fusion]", 'method = "weighted_mean"', "[batching]", batching]
        if "max_batch_size" not in batching:
            lines.append(f"max_batch_size = {MAX_BATCH_SIZE}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ensemble.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    def requests(self, count: int) -> list[Arrays]:
        """Return the inputs of so many different requests, the same ones each time."""
        random = np.random.default_rng(0)
        return [{name: _draw(random, dtype, shape) for name, (dtype, shape) in self.inputs.items()} for _ in range(count)]

    def expect(self, requests: Sequence[Arrays]) -> NDArray[np.float32]:
        """Compute the probabilities by themselves, request by request: float32 [requests, classes]."""
        compute = Both(self)
        return np.stack([compute(stack([inputs]))[0] for inputs in requests])


class Both:
    """Both models and their fusion, in one process on one thread: what every peer calls."""

    def __init__(self, pair: Pair) -> None:
        """Make the models."""
        self._models = {name: model().eval().requires_grad_(False) for name, model in pair.models.items()}

    def __call__(self, arrays: Arrays) -> NDArray[np.float32]:
        """Compute [n, ...] by input name; returns the mean of the members' probabilities, float32 [n, classes]."""
        with torch.inference_mode():
            each: list[Tensor] = [model(torch.from_numpy(arrays[name])).softmax(-1) for name, model in self._models.items()]
            fused: NDArray[np.float32] = torch.stack(each).mean(0).numpy()
            return fused


def stack(requests: Sequence[Arrays]) -> Arrays:
    """Put the inputs of requests on top of each other: [n, ...] by input name."""
    return {name: np.stack([inputs[name] for inputs in requests]) for name in requests[0]}


def _draw(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    if dtype == "float32":
        return random.standard_normal(shape, dtype=np.float32)
    return random.integers(0, 256, shape).astype(dtype)


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("noop", {"left": Doubled, "right": Raised}, {"left": ("float32", (CLASSES,)), "right": ("float32", (CLASSES,))}),
        Pair(
            "small",
            {"image": Convolutions, "tokens": Transformer},
            {"image": ("uint8", (3, 64, 64)), "tokens": ("int64", (32,))},
        ),
        Pair("slow", {"left": Slept, "right": Slept}, {"left": ("float32", (CLASSES,)), "right": ("float32", (CLASSES,))}),
    )
}

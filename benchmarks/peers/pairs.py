"""The two pairs of models: as an ensemble folder, as requests, and as what plain torch answers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.models import CLASSES, Convolutions, Doubled, Raised, Transformer

MAX_ROWS = 32
"""The most rows that any server computes at once."""

DELAY_SECONDS = 0.002
"""How long peers wait for more rows."""

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models by the name of their only input, and what that input looks like: dtype and shape of one row."""

    name: str
    models: Mapping[str, type[nn.Module]]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]

    def write(self, folder: Path, files: Mapping[str, str] | None = None) -> Path:
        """Write the ensemble; give its folder. `files` has the models' names in it, by member; without, they are Python."""
        lines = [f'name = "{self.name}"', "version = 1", 'task = "classification"']
        for name, model in self.models.items():
            dtype, shape = self.inputs[name]
            place = files[name] if files else f"python:{model.__module__}:{model.__qualname__}"
            lines += [f"[members.{name}]", f'model = "{place}"']
            lines += [f"[members.{name}.input.{name}]", 'kind = "tensor"', f'dtype = "{dtype}"', f"shape = {list(shape)}"]
        lines += ["[fusion]", 'method = "weighted_mean"', "[batching]", f"max_batch_size = {MAX_ROWS}"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ensemble.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    def rows(self, count: int) -> list[Arrays]:
        """Make so many different rows, the same ones each time."""
        random = np.random.default_rng(0)
        return [{name: _draw(random, dtype, shape) for name, (dtype, shape) in self.inputs.items()} for _ in range(count)]

    def expect(self, rows: Sequence[Arrays]) -> NDArray[np.float32]:
        """Compute the probabilities by themselves, row by row: float32 [rows, classes]."""
        compute = Both(self)
        return np.stack([compute(stack([row]))[0] for row in rows])


class Both:
    """Both models and their fusion, in one process on one thread: what every peer calls."""

    def __init__(self, pair: Pair) -> None:
        """Make the models."""
        self._models = {name: model().eval().requires_grad_(False) for name, model in pair.models.items()}

    def __call__(self, arrays: Arrays) -> NDArray[np.float32]:
        """Compute [n, ...] by input name; gives the mean of the members' probabilities, float32 [n, classes]."""
        with torch.inference_mode():
            beliefs: list[Tensor] = [model(torch.from_numpy(arrays[name])).softmax(-1) for name, model in self._models.items()]
            fused: NDArray[np.float32] = torch.stack(beliefs).mean(0).numpy()
            return fused


def stack(rows: Sequence[Arrays]) -> Arrays:
    """Put rows on top of each other: [n, ...] by input name."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


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
    )
}

"""Fusions to try: one for every method and task, with outputs for it, as members would give them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from twinfer_server.fusion import METHODS, Fitted, Fused, Fusion, StackingHead, build_fusion
from twinfer_server.spec import EnsembleSpec, Task

UNTIMED = settings(deadline=None)
"""A busy machine is no failure: torch's first calls and a neighbour's load outlast any deadline."""

CLASSES = 5
TENSOR = {"kind": "tensor", "dtype": "float32", "shape": [2]}
KIND_OF_TASK = {"embedding": "embedding", "similarity": "embedding", "detection": "detections", "tensor": "tensor"}


@dataclass(frozen=True)
class Example:
    """An ensemble of members called left and right, or more, that a method can fuse."""

    method: str
    task: Task
    shapes: tuple[tuple[int, ...], ...] = ((CLASSES,), (CLASSES,))
    kinds: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    fitted: Fitted | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return ("left", "right", "third", "fourth")[: len(self.shapes)]

    @property
    def spec(self) -> EnsembleSpec:
        kinds = self.kinds or (KIND_OF_TASK.get(self.task, "logits"),) * len(self.shapes)
        members = {
            name: {"model": "python:m:a", "input": {"x": TENSOR}, "output": {"kind": kind}}
            for name, kind in zip(self.names, kinds, strict=True)
        }
        document = {"name": "pair", "version": 1, "task": self.task, "members": members}
        return EnsembleSpec.model_validate(document | {"fusion": {"method": self.method, **self.options}})

    def build(self) -> Fusion:
        return build_fusion(self.spec, self.shapes, self.fitted)

    def outputs(self, rows: int, generator: torch.Generator) -> list[Tensor]:
        """Make outputs that any member of the task could have given."""
        return [torch.randn(rows, *shape, generator=generator) for shape in self.shapes]


def example_head(seed: int = 0, hidden: int = 0) -> Fitted:
    """Make a head for two members that has learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = StackingHead(2, CLASSES, hidden).state_dict()
    return Fitted("stacking", {"left": "", "right": ""}, {}, {"left": 2.0, "right": 0.5}, hidden, tensors=tensors)


def _list_examples() -> dict[str, Example]:
    """Find an example for every method and each of its tasks."""
    special: dict[tuple[str, str], Callable[[Example], Example]] = {
        ("stacking", "classification"): lambda example: replace(example, fitted=example_head()),
        ("stacking", "multi_label"): lambda example: replace(example, fitted=example_head(hidden=3)),
    }
    return {
        f"{name} for {task}": special.get((name, task), lambda example: example)(Example(name, task))  # type: ignore[no-untyped-call]
        for name, method in METHODS.items()
        for task in method.builds
    }


EXAMPLES = _list_examples()


def make_rows(example: Example, rows: int, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Make outputs, weights and how many samples each member has for each row; what is absent holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    outputs = example.outputs(rows, generator)
    weights = torch.rand(rows, len(outputs), generator=generator)
    samples = (torch.rand(rows, len(outputs), generator=generator) < 0.7).to(torch.int32)
    for member, output in enumerate(outputs):
        output[samples[:, member] == 0] = math.nan
    return outputs, weights, samples


def pick(fused: Fused, rows: slice | Tensor) -> Fused:
    """Give the answers for some of the rows."""
    return Fused(*(getattr(fused, name)[rows] for name in Fused.__dataclass_fields__))


def assert_same(found: Fused, expected: Fused) -> None:
    for name in Fused.__dataclass_fields__:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)

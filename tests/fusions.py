"""Fusions to try: one for every method and task, with outputs for it, as members would give them."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinfer_server.fusion import METHODS, Fitted, Fused, Fusion, StackingHead, build_fusion
from twinfer_server.spec import EnsembleSpec, Task

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
    several: int = 0
    """The most samples that the last member has for a row, of a method for several."""

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
        if self.method == "classify_crops":
            crops = {"kind": "crops", "member": self.names[kinds.index("detections")], "size": [4, 4], "max_crops": self.several}
            members[self.names[kinds.index("logits")]]["input"] = {"x": crops | {"min_score": 0.2}}
        document = {"name": "pair", "version": 1, "task": self.task, "members": members}
        return EnsembleSpec.model_validate(document | {"fusion": {"method": self.method, **self.options}})

    def build(self) -> Fusion:
        return build_fusion(self.spec, self.shapes, self.fitted)

    def outputs(self, rows: int, generator: torch.Generator) -> list[Tensor]:
        """Make outputs that any member of the task could have given."""
        outputs = [torch.randn(rows, *shape, generator=generator) for shape in self.shapes]
        if self.task == "detection":
            outputs = [
                draw_boxes(rows, shape[0], generator) if len(shape) == 2 else output
                for shape, output in zip(self.shapes, outputs, strict=True)
            ]
        if self.several:
            outputs[-1] = torch.randn(rows, self.several, *self.shapes[-1], generator=generator)
        return outputs

    def most_samples(self, rows: int) -> Tensor:
        """Give the samples of rows for which all members have as many as they may, int32 [rows, members]."""
        counts = [1] * (len(self.shapes) - 1) + [self.several or 1]
        return torch.tensor([counts], dtype=torch.int32).expand(rows, -1)


def draw_boxes(rows: int, boxes: int, generator: torch.Generator, classes: int = 3) -> Tensor:
    """Draw detections [rows, boxes, 6] around a few places, highest score first."""
    places = torch.randint(0, 3, (rows, boxes, 2), generator=generator) * 0.3
    low = places + 0.05 * torch.rand(rows, boxes, 2, generator=generator)
    high = low + 0.2 + 0.1 * torch.rand(rows, boxes, 2, generator=generator)
    scores = torch.rand(rows, boxes, 1, generator=generator).sort(dim=1, descending=True).values
    labels = torch.randint(0, classes, (rows, boxes, 1), generator=generator).float()
    return torch.cat([low, high, scores, labels], dim=-1)


def example_head(seed: int = 0, hidden: int = 0) -> Fitted:
    """Make a head for two members that has learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = StackingHead(2, CLASSES, hidden).state_dict()
    return Fitted("stacking", {"left": "", "right": ""}, {}, {"left": 2.0, "right": 0.5}, hidden, tensors=tensors)


def _list_examples() -> dict[str, Example]:
    """Find an example for every method and each of its tasks."""
    boxes: dict[str, Any] = {"shapes": ((8, 6), (5, 6)), "options": {"max_boxes": 10}}
    special: dict[tuple[str, str], dict[str, Any]] = {
        ("stacking", "classification"): {"fitted": example_head()},
        ("stacking", "multi_label"): {"fitted": example_head(hidden=3)},
        ("weighted_mean", "tensor"): {"shapes": ((2, 3), (2, 3))},
        ("cosine", "similarity"): {"several": 3, "options": {"scale": 5.0}},
        ("nms", "detection"): boxes,
        ("weighted_boxes", "detection"): boxes,
        ("classify_crops", "detection"): boxes | {"shapes": ((8, 6), (CLASSES,)), "kinds": ("detections", "logits"), "several": 4},
    }
    return {
        f"{name} for {task}": Example(name, task, **special.get((name, task), {}))
        for name, method in METHODS.items()
        for task in method.builds
    }


EXAMPLES = _list_examples()


def make_rows(example: Example, rows: int, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Make outputs, weights and how many samples each member has for each row; what is absent holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    outputs = example.outputs(rows, generator)
    weights = torch.rand(rows, len(outputs), generator=generator)
    samples = (torch.rand(rows, len(outputs), generator=generator) < 0.7) * example.most_samples(rows)
    if example.several:
        samples[:, -1] = torch.minimum(samples[:, -1], torch.randint(1, example.several + 1, (rows,), generator=generator))
        outputs[-1][torch.arange(example.several) >= samples[:, -1:]] = math.nan
    for member, output in enumerate(outputs):
        output[samples[:, member] == 0] = math.nan
    return outputs, weights, samples


def pick(fused: Fused, rows: slice | Tensor) -> Fused:
    """Give the answers for some of the rows."""
    return Fused(*(getattr(fused, name)[rows] for name in Fused.__dataclass_fields__))


def assert_same(found: Fused, expected: Fused) -> None:
    for name in Fused.__dataclass_fields__:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)

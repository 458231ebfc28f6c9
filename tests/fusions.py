"""Fusions to try: one for every method and task, with outputs for it, as members would give them."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from twinfer_server.fusion import METHODS, Fitted, Fusion, FusionResult, StackingHead, build_fusion, renormalise
from twinfer_server.spec import EnsembleSpec, Task

CLASSES = 5
TENSOR = {"kind": "tensor", "dtype": "float32", "shape": [2]}
KIND_OF_TASK = {"embedding": "embedding", "similarity": "embedding", "detection": "detections", "tensor": "tensor"}
EQUAL = torch.tensor([[0.5, 0.5]])
BOTH = torch.tensor([[1, 1]], dtype=torch.int32)
"""One request's weights, and the samples that two members have for it."""


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
    """The most samples that the last member has for a request, of a method for several."""

    @property
    def spec(self) -> EnsembleSpec:
        kinds = self.kinds or (KIND_OF_TASK.get(self.task, "logits"),) * len(self.shapes)
        members = {
            name: {"model": "python:m:a", "input": {"x": TENSOR}, "output": {"kind": kind}}
            for name, kind in zip(("left", "right", "third", "fourth"), kinds, strict=False)
        }
        document = {"name": "pair", "version": 1, "task": self.task, "members": members}
        return EnsembleSpec.model_validate(document | {"fusion": {"method": self.method, **self.options}})

    def build(self) -> Fusion:
        return build_fusion(self.spec, self.shapes, self.fitted)

    def fuse(self, outputs: list[Tensor], weights: Tensor = EQUAL, samples: Tensor = BOTH) -> FusionResult:
        """Build the fusion and fuse; one request's weights and samples stand for those of all."""
        requests = len(outputs[0])
        result: FusionResult = self.build()(outputs, weights.expand(requests, -1), samples.expand(requests, -1))
        return result

    def outputs(self, requests: int, generator: torch.Generator) -> list[Tensor]:
        """Make outputs that any member of the task could have given."""
        outputs = [torch.randn(requests, *shape, generator=generator) for shape in self.shapes]
        if self.task == "detection":
            outputs = [draw_boxes(requests, shape[0], generator) for shape in self.shapes]
        if self.several:
            outputs[-1] = torch.randn(requests, self.several, *self.shapes[-1], generator=generator)
        return outputs

    def most_samples(self, requests: int) -> Tensor:
        """Give the samples of requests for which all members have as many as they may, int32 [requests, members]."""
        counts = [1] * (len(self.shapes) - 1) + [self.several or 1]
        return torch.tensor([counts], dtype=torch.int32).expand(requests, -1)


def draw_boxes(requests: int, boxes: int, generator: torch.Generator, classes: int = 3) -> Tensor:
    """Draw detections [requests, boxes, 6] around a few points, highest score first."""
    low = torch.randint(0, 3, (requests, boxes, 2), generator=generator) * 0.3
    low = low + 0.05 * torch.rand(requests, boxes, 2, generator=generator)
    high = low + 0.2 + 0.1 * torch.rand(requests, boxes, 2, generator=generator)
    scores = torch.rand(requests, boxes, 1, generator=generator).sort(dim=1, descending=True).values
    labels = torch.randint(0, classes, (requests, boxes, 1), generator=generator).float()
    return torch.cat([low, high, scores, labels], dim=-1)


def draw_weights(data: st.DataObject, requests: int, members: int) -> Tensor:
    """Draw weights that sum to 1 over members that are present, 0 for the others, float32 [requests, members]."""
    weights = data.draw(arrays.arrays(np.float32, (requests, members), elements=st.floats(0.0009765625, 1, width=32)))
    present = data.draw(arrays.arrays(np.bool_, (requests, members)))
    return renormalise(torch.from_numpy(weights), torch.from_numpy(present))


def example_head(seed: int = 0, hidden: int = 0) -> Fitted:
    """Make a head for two members that has learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = StackingHead(2, CLASSES, hidden).state_dict()
    return Fitted("stacking", {"left": "", "right": ""}, {}, {"left": 2.0, "right": 0.5}, hidden, tensors=tensors)


_SPECIAL: dict[tuple[str, str], dict[str, Any]] = {
    ("stacking", "classification"): {"fitted": example_head()},
    ("stacking", "multi_label"): {"fitted": example_head(hidden=3)},
    ("weighted_mean", "tensor"): {"shapes": ((2, 3), (2, 3))},
    ("cosine", "similarity"): {"several": 3, "options": {"scale": 5.0}},
    ("weighted_boxes", "detection"): {"shapes": ((8, 6), (5, 6)), "options": {"max_boxes": 10}},
}
EXAMPLES = {
    f"{name} for {task}": Example(name, task, **_SPECIAL.get((name, task), {}))
    for name, method in METHODS.items()
    for task in method.tasks
}
"""One for every method and each of its tasks."""


def make_requests(example: Example, requests: int, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Make outputs, weights and how many samples each member has for each request; what is absent holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    outputs = example.outputs(requests, generator)
    weights = torch.rand(requests, len(outputs), generator=generator)
    samples = (torch.rand(requests, len(outputs), generator=generator) < 0.7) * example.most_samples(requests)
    if example.several:
        samples[:, -1] = torch.minimum(samples[:, -1], torch.randint(1, example.several + 1, (requests,), generator=generator))
        outputs[-1][torch.arange(example.several) >= samples[:, -1:]] = math.nan
    for member, output in enumerate(outputs):
        output[samples[:, member] == 0] = math.nan
    return outputs, weights, samples


def pick(result: FusionResult, requests: slice | Tensor) -> FusionResult:
    """Give the answers for some of the requests."""
    return FusionResult(*(getattr(result, name)[requests] for name in FusionResult.__dataclass_fields__))


def assert_same(found: FusionResult, expected: FusionResult) -> None:
    for name in FusionResult.__dataclass_fields__:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)

"""How far apart two answers are, 0 to 1, for every task."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fusions import EXAMPLES, Example, make_requests
from twinfer_server.fusion import attribution_delta
from twinfer_server.spec import Task

BOX = [0.1, 0.1, 0.5, 0.5]
NOWHERE = [0.0] * 6


@pytest.mark.parametrize(
    ("task", "one", "other", "expected"),
    [
        pytest.param("classification", [0.7, 0.2, 0.1], [0.5, 0.5, 0.0], 0.3, id="classes: half the sum of the differences"),
        pytest.param("classification", [1.0, 0.0], [0.0, 1.0], 1.0, id="classes: other certainties"),
        pytest.param("multi_label", [0.9, 0.5], [0.5, 0.5], 0.2, id="labels: the mean difference"),
        pytest.param("embedding", [3.0, 4.0], [4.0, 3.0], 0.02, id="embeddings: half of 1 less the cosine"),
        pytest.param("embedding", [1.0, 0.0], [-2.0, 0.0], 1.0, id="embeddings: turned around"),
        pytest.param("embedding", [math.sqrt(0.75), 0.5], [math.sqrt(0.75), 0.0], (1 - math.sqrt(0.75)) / 2, id="a part that is 0"),
        pytest.param("similarity", [[0.5, 0.9], [0.1, 0.1]], [[0.5, 0.7], [0.1, 0.3]], 0.2, id="similarities: the mean difference"),
        pytest.param("similarity", [[0.5, 0.9], [0.0, 0.0]], [[0.5, 0.7]], 0.2, id="similarities: of two lengths"),
        pytest.param("tensor", [[3.0], [4.0]], [[3.0], [0.0]], 0.5, id="tensors: the distance over the lengths"),
        pytest.param("tensor", [0.0, 0.0], [0.0, 0.0], 0.0, id="tensors: nothing and nothing"),
        pytest.param("detection", [[*BOX, 0.8, 1]], [[*BOX, 0.2, 1]], 0.0, id="boxes: the same place and class"),
        pytest.param("detection", [[*BOX, 0.8, 1]], [[*BOX, 0.2, 2]], 1.0, id="boxes: another class"),
        pytest.param("detection", [[*BOX, 0.8, 1]], [[0.1, 0.1, 0.5, 0.29, 0.2, 1]], 1.0, id="boxes: hardly over each other"),
        pytest.param(
            "detection", [[*BOX, 0.8, 1]], [[0.1, 0.1, 0.5, 0.31, 0.2, 1]], 0.0, id="boxes: more than half over each other"
        ),
        pytest.param(
            "detection", [[*BOX, 0.8, 1], [0.6, 0.6, 0.9, 0.9, 0.5, 1]], [[*BOX, 0.7, 1], NOWHERE], 0.25, id="boxes: one more"
        ),
        pytest.param("detection", [NOWHERE], [NOWHERE], 0.0, id="boxes: none and none"),
        pytest.param("detection", [[*BOX, 0.8, 0]], [NOWHERE], 1.0, id="boxes: one and none"),
    ],
)
def test_known_values(task: Task, one: list[object], other: list[object], expected: float) -> None:
    apart = attribution_delta(task, torch.tensor([one]), torch.tensor([other]))
    assert apart.tolist() == pytest.approx([expected], abs=1e-6)
    torch.testing.assert_close(attribution_delta(task, torch.tensor([other]), torch.tensor([one])), apart)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_it_is_0_to_1_and_0_for_the_same_answer(example: Example, seed: int) -> None:
    outputs, weights, samples = make_requests(example, 3, seed)
    one = example.fuse(outputs, weights, samples)
    other = example.fuse(outputs, weights, samples * torch.tensor([1, 0]))
    apart = attribution_delta(example.task, one.prediction, other.prediction)
    assert apart.shape == (3,)
    assert apart.dtype == torch.float32
    assert ((apart >= 0) & (apart <= 1)).all()
    has_direction = one.prediction.flatten(1).any(-1) if example.task == "embedding" else torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(attribution_delta(example.task, one.prediction, one.prediction) * has_direction, torch.zeros(3))

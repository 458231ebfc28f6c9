"""A detector's boxes with the classes that a classifier of their crops gives them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from tests.fusions import EXAMPLES, Example, make_rows
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import Fused, find_method
from twinfer_server.spec import EnsembleSpec

CROPS = EXAMPLES["classify_crops for detection"]
MIN_CROP_SCORE = 0.2
MAX_BOXES = 10


@given(seed=st.integers(0, 100_000), rows=st.integers(1, 4))
def test_equals_the_plain_reference(seed: int, rows: int) -> None:
    example = replace(CROPS, options={**CROPS.options, "temperatures": {"right": 2.0}})
    outputs, weights, samples = make_rows(example, rows, seed)
    fused: Fused = example.build()(outputs, weights, samples)
    for row in range(rows):
        boxes, logits = outputs[0][row].double().numpy(), outputs[1][row].double().numpy() / 2
        expected = np.zeros((MAX_BOXES, 6))
        crops = int(samples[row, 1])
        if samples[row, 0] and crops:
            boxes = boxes[:crops]
            chances = softmax(logits[:crops], axis=-1)
            boxes[:, 4] *= (boxes[:, 4] >= MIN_CROP_SCORE) * chances.max(-1)
            boxes[:, 5] = chances.argmax(-1)
            boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
            boxes[boxes[:, 4] <= 0] = 0
        if samples[row, 0]:
            expected[: len(boxes)] = boxes
        np.testing.assert_allclose(fused.prediction[row].numpy(), expected, atol=1e-6)
    assert fused.present.tolist() == (samples > 0).tolist()


def test_the_box_is_the_detectors_and_the_class_the_classifiers() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4, 0.9, 0.0], [0.5, 0.5, 0.8, 0.8, 0.6, 0.0], [0.0, 0.0, 0.2, 0.2, 0.5, 0.0]]])
    chances = torch.tensor([[[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]]])
    example = replace(CROPS, shapes=((3, 6), (3,)), options={"max_boxes": 3}, several=2)
    weights, samples = torch.tensor([[0.5, 0.5]]), torch.tensor([[1, 2]], dtype=torch.int32)
    fused: Fused = example.build()([boxes, chances.log()], weights, samples)
    expected = [[0.5, 0.5, 0.8, 0.8, 0.54, 2.0], [0.1, 0.2, 0.3, 0.4, 0.45, 0.0], [0.0] * 6]
    torch.testing.assert_close(fused.prediction, torch.tensor([expected]))
    alone: Fused = example.build()([boxes, chances.log()], weights, samples * torch.tensor([1, 0]))
    torch.testing.assert_close(alone.prediction, boxes)


def test_only_the_detector_is_needed() -> None:
    assert CROPS.build().needs == {0}


def test_beliefs_are_the_members_own() -> None:
    fusion = replace(CROPS, options={"max_boxes": 2, "temperatures": {"right": 2.0}}).build()
    outputs = CROPS.outputs(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(fusion.belief(0, outputs[0]), outputs[0][:, :2])
    torch.testing.assert_close(fusion.belief(1, outputs[1]), (outputs[1] / 2).softmax(-1))


def change(spec: EnsembleSpec, name: str, **keys: Any) -> EnsembleSpec:
    members = {**spec.members, name: spec.members[name].model_copy(update=keys)}
    return spec.model_copy(update={"members": members})


TENSOR_INPUT = CROPS.spec.members["left"].input
PAIR = Example("cosine", "similarity").spec
TWO = Example("nms", "detection").spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(
            change(CROPS.spec, "right", input=TENSOR_INPUT),
            "members.right.input: no input of kind 'crops' with member = 'left'",
            id="a classifier that looks at something else",
        ),
        pytest.param(
            change(CROPS.spec, "right", output=CROPS.spec.members["left"].output),
            "members: found outputs {'left': 'detections', 'right': 'detections'}; allowed: one of detections",
            id="two detectors",
        ),
        pytest.param(
            change(Example("weighted_mean", "classification").spec, "right", input=CROPS.spec.members["right"].input),
            "members.right.input.x: it may give several samples for a row; allowed: one",
            id="several opinions where one is fused",
        ),
        pytest.param(
            change(PAIR, "left", input={"x": TENSOR_INPUT["x"].model_copy(update={"max_samples": 2})}),
            "members.left.input.x: it may give several samples for a row; allowed: one, for 'cosine'",
            id="several queries",
        ),
        pytest.param(
            Example("cosine", "similarity", ((2,), (2,), (2,))).spec,
            "members: ['left', 'right', 'third'] give embeddings; allowed: two that do",
            id="three embeddings to compare",
        ),
        pytest.param(
            Example("cosine", "similarity", ((2,),) * 3, ("features", "embedding", "embedding"), {"query": "left"}).spec,
            "fusion.query: found 'left', whose output is of kind 'features'; allowed: ['right', 'third']",
            id="a query that does not vote",
        ),
        pytest.param(
            change(TWO, "left", output=TWO.members["left"].output.model_copy(update={"box_units": "pixels"})),
            "members.left.output.box_units: found 'pixels' of a member with 0 images; allowed: of one with one",
            id="pixels of nothing",
        ),
    ],
)
def test_members_that_do_not_fit_are_refused(spec: EnsembleSpec, message: str) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        find_method(spec)
    assert str(refusal.value).startswith(message)


def test_several_texts_to_compare_are_fine() -> None:
    find_method(change(PAIR, "right", input={"x": TENSOR_INPUT["x"].model_copy(update={"max_samples": 2})}))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((8, 5), (3,)), r"members\.left\.output: a sample's output has shape \[8, 5\]; allowed: \[boxes, 6\]"),
        (((8, 6), (1,)), r"members\.right\.output: a sample's output has shape \[1\]; allowed: \[classes\], at least 2"),
    ],
    ids=["boxes of 5 numbers", "a single class"],
)
def test_outputs_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=message):
        replace(CROPS, shapes=shapes).build()

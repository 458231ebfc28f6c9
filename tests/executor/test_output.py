"""Outputs: what counts of whatever a model returns, and detections packed into one tensor."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.models import load_members, register
from tests.servers import write_ensemble
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor.output import pack_detections, read_output, select_output
from twinfer_server.spec import MemberSpec, OutputSpec

SIZE = (100, 200)
"""Height and width."""
RELATIVE = torch.tensor([[[0.1, 0.2, 0.5, 0.6]]])
SCORES, LABELS = torch.tensor([[0.5]]), torch.tensor([[3]])


def make_spec(**output: Any) -> OutputSpec:
    return OutputSpec(kind="detections", **output)


@pytest.mark.parametrize(
    ("boxes", "keys"),
    [
        pytest.param([0.1, 0.2, 0.5, 0.6], {}, id="corners"),
        pytest.param([0.3, 0.4, 0.4, 0.4], {"box_format": "cxcywh"}, id="centre and size"),
        pytest.param([0.1, 0.2, 0.4, 0.4], {"box_format": "xywh"}, id="corner and size"),
        pytest.param([20.0, 20.0, 100.0, 60.0], {"box_units": "pixels"}, id="corners in pixels"),
        pytest.param([60.0, 40.0, 80.0, 40.0], {"box_format": "cxcywh", "box_units": "pixels"}, id="centre and size in pixels"),
        pytest.param([20.0, 20.0, 80.0, 40.0], {"box_format": "xywh", "box_units": "pixels"}, id="corner and size in pixels"),
    ],
)
def test_every_format_gives_the_same_box(boxes: list[float], keys: dict[str, Any]) -> None:
    packed = pack_detections(torch.tensor([[boxes]]), SCORES, LABELS, make_spec(**keys), SIZE)
    torch.testing.assert_close(packed, torch.tensor([[[0.1, 0.2, 0.5, 0.6, 0.5, 3.0]]]))


@pytest.mark.parametrize(
    ("scores", "kind", "score", "label"),
    [
        pytest.param([0.1, 0.7, 0.2], "probabilities", 0.7, 1, id="probabilities"),
        pytest.param([-1.0, 0.0, 2.0], "sigmoid", 1 / (1 + np.exp(-2)), 2, id="a sigmoid for each class"),
        pytest.param([np.log(0.3), np.log(0.1), np.log(0.6)], "softmax", 0.3, 0, id="a softmax whose last class is nothing"),
    ],
)
def test_the_best_class_of_a_box_counts(scores: list[float], kind: str, score: float, label: int) -> None:
    packed = pack_detections(RELATIVE, torch.tensor([[scores]]).float(), None, make_spec(score_kind=kind), SIZE)
    assert packed[0, 0, 4:].tolist() == pytest.approx([score, label])


def test_one_score_for_a_box_and_no_labels_mean_one_class() -> None:
    assert pack_detections(RELATIVE, SCORES, None, make_spec(), SIZE)[0, 0, 5] == 0


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 3), boxes=st.integers(1, 6))
def test_the_highest_score_comes_first_with_its_own_box(seed: int, samples: int, boxes: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.random((samples, boxes, 4)).astype(np.float32)
    scores, labels = random.random((samples, boxes)).astype(np.float32), random.integers(0, 9, (samples, boxes))
    given_boxes, given_scores, given_labels = map(torch.from_numpy, (corners, scores, labels))
    packed = pack_detections(given_boxes, given_scores, given_labels, make_spec(), SIZE).numpy()
    for sample in range(samples):
        order = np.argsort(-scores[sample])
        expected = np.concatenate([corners[sample], scores[sample, :, None], labels[sample, :, None]], axis=-1)[order]
        np.testing.assert_allclose(packed[sample], expected)


def test_boxes_end_at_the_images_edge_and_infinities_are_not_hidden() -> None:
    boxes = torch.tensor([[[-0.5, 0.0, 1.5, 1.0], [0.0, 0.0, torch.inf, 1.0]]])
    packed = pack_detections(boxes, torch.tensor([[0.9, 0.8]]), None, make_spec(), SIZE)
    assert packed[0, 0].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0, 0.9, 0.0])
    assert packed[0, 1].isnan().any()


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "keys", "message"),
    [
        pytest.param((1, 5, 3), (1, 5), None, {}, r"found boxes \[1, 5, 3\]", id="boxes of three numbers"),
        pytest.param((1, 5, 4), (1, 4), None, {}, r"scores \[1, 4\]; allowed: boxes", id="fewer scores than boxes"),
        pytest.param((1, 5, 4), (1, 5, 2), (1, 5), {}, r"found scores \[1, 5, 2\] and labels", id="classes said twice"),
        pytest.param((1, 5, 4), (1, 5), (1, 4), {}, r"labels \[1, 4\]", id="fewer labels than boxes"),
        pytest.param(
            (1, 5, 4), (1, 5), None, {"score_kind": "softmax"}, "score_kind: 'softmax' of scores", id="a softmax of nothing"
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    boxes: tuple[int, ...], scores: tuple[int, ...], labels: tuple[int, ...] | None, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack_detections(
            torch.zeros(boxes), torch.zeros(scores), None if labels is None else torch.zeros(labels), make_spec(**keys), SIZE
        )


def test_outputs_are_found_by_place_by_name_and_as_attributes() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert select_output("key", (one, two), 1) is two
    assert select_output("key", {"a": one, "b": two}, "b") is two
    assert select_output("key", {"a": one, "b": two}, 1) is two
    assert select_output("key", SimpleNamespace(logits=two), "logits") is two
    with pytest.raises(InvalidEnsemble, match=r"key: 2 finds no tensor; found outputs 2 of type \['Tensor', 'Tensor'\]"):
        select_output("key", (one, two), 2)


def test_a_detector_without_scores_is_refused_by_name() -> None:
    spec = MemberSpec.model_validate(
        {
            "model": "python:m:a",
            "input": {"x": {"kind": "tensor", "dtype": "float32", "shape": [1]}},
            "output": {"kind": "detections"},
        }
    )
    with pytest.raises(InvalidEnsemble, match=r"members\.eye\.output\.scores: 1 finds no tensor"):
        read_output("eye", spec, (RELATIVE,))
    with pytest.raises(InvalidEnsemble, match=r"members\.eye\.output: found boxes"):
        read_output("eye", spec, (RELATIVE, torch.zeros(1, 7)))


def detect(x: Tensor) -> dict[str, Tensor]:
    """Find an object as wide as the image's brightest pixel says, in pixels, and another half as certain."""
    width = x.amax((1, 2, 3)) * 8
    zeros = torch.zeros_like(width)
    box = torch.stack([zeros, zeros, width, zeros + 4], dim=-1)
    return {"boxes": torch.stack([box / 2, box], dim=1), "scores": torch.stack([zeros + 0.4, zeros + 0.8], dim=1)}


def test_a_detectors_boxes_are_packed_where_it_computes(tmp_path: Path) -> None:
    toml = f"""
        name = "eye"
        version = 1
        task = "detection"
        [members.eye]
        model = "{register(lambda: detect)}"
        [members.eye.input.image]
        kind = "image"
        size = [4, 8]
        color = "gray"
        [members.eye.output]
        kind = "detections"
        select = "boxes"
        scores = "scores"
        box_units = "pixels"
        [fusion]
        method = "nms"
        max_boxes = 5
    """
    ensemble = load_members(write_ensemble(tmp_path, toml))
    member = ensemble.members[0]
    assert member.output_shape == (2, 6)
    slot, bucket = member.slots[0], member.bucket([(np.full((1, 4, 8, 1), 255, np.uint8),)])
    slot.write([(np.full((1, 4, 8, 1), 255, np.uint8),)], bucket)
    slot.copy_in(bucket)
    with torch.inference_mode():
        packed = member.compute(slot, bucket)[:1]
    torch.testing.assert_close(packed, torch.tensor([[[0.0, 0.0, 1.0, 1.0, 0.8, 0.0], [0.0, 0.0, 0.5, 0.5, 0.4, 0.0]]]))

"""Detections: packed into one tensor, and those of several detectors merged as the package of the paper's authors does it."""

import copy
from typing import Any

import ensemble_boxes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.fusions import Example, draw_boxes
from twinfer_server.fusion import pack_detections, renormalise
from twinfer_server.fusion.detection import measure_overlaps, weighted_boxes_fusion
from twinfer_server.spec import OutputSpec

FEWER = settings(max_examples=40)
MAX_BOXES = 40
SIZE = (100, 200)
"""Height and width."""
RELATIVE = torch.tensor([[[0.1, 0.2, 0.5, 0.6]]])
SCORES, LABELS = torch.tensor([[0.5]]), torch.tensor([[3]])
Floats = NDArray[np.float64]


def draw_detections(seed: int, requests: int, members: int, most: int) -> tuple[list[Tensor], Tensor]:
    """Draw boxes for every member, NaN where it is absent, and weights that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (members,), generator=generator).tolist()
    boxes = [draw_boxes(requests, count, generator) for count in counts]
    for one in boxes:  # some places are empty
        one[torch.rand(one.shape[:2], generator=generator) < 0.2] = 0.0
    present = torch.rand(requests, members, generator=generator) < 0.8
    weights = renormalise(0.1 + torch.rand(requests, members, generator=generator), present)
    for member, one in enumerate(boxes):
        one[~present[:, member]] = torch.nan
    return boxes, weights


def package_boxes(boxes: list[Tensor], weights: Tensor, request: int, iou: float) -> Floats:
    """Have the package fuse one request: [boxes, 6], highest score first."""
    found = [(one[request], weights[request, member].item()) for member, one in enumerate(boxes) if weights[request, member] > 0]
    kept = [(one[one[:, 4] > 0].double().numpy(), weight) for one, weight in found]
    if not any(len(one) for one, _ in kept):
        return np.zeros((0, 6))
    corners, scores, labels = ([one[:, columns] for one, _ in kept] for columns in (slice(0, 4), 4, 5))
    parts = ensemble_boxes.weighted_boxes_fusion(corners, scores, labels, weights=[w for _, w in kept], iou_thr=iou)
    merged: Floats = np.concatenate([parts[0], parts[1][:, None], parts[2][:, None]], axis=1)
    merged[:, 4] = np.minimum(merged[:, 4], 1.0)
    return merged[np.argsort(-merged[:, 4], kind="stable")]


@FEWER
@given(
    seed=st.integers(0, 100_000),
    requests=st.integers(1, 3),
    members=st.integers(1, 3),
    most=st.integers(1, 12),
    iou=st.sampled_from([0.0, 0.3, 0.55, 0.9]),
)
def test_equals_the_package_over_the_present_members(seed: int, requests: int, members: int, most: int, iou: float) -> None:
    boxes, weights = draw_detections(seed, requests, members, most)
    found = weighted_boxes_fusion(boxes, weights, iou, MAX_BOXES)
    assert found.shape == (requests, MAX_BOXES, 6)
    for request in range(requests):
        expected = package_boxes(copy.deepcopy(boxes), weights, request, iou)
        np.testing.assert_allclose(found[request, : len(expected)].numpy(), expected, atol=1e-5)
        assert not found[request, len(expected) :].any()

    order = torch.from_numpy(np.random.default_rng(seed).permutation(requests))
    permuted = weighted_boxes_fusion([one[order] for one in boxes], weights[order], iou, MAX_BOXES)
    torch.testing.assert_close(permuted, found[order])


@given(seed=st.integers(0, 1000))
def test_overlaps_equal_counted_cells(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = np.sort(random.integers(0, 9, (2, 2, 2)), axis=1).reshape(2, 4)
    cells = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in corners]
    union = len(cells[0] | cells[1])
    boxes = torch.from_numpy(corners / 8).float()
    expected = len(cells[0] & cells[1]) / union if union else 0.0
    assert measure_overlaps(boxes[:1], boxes[1:]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, 2, id="boxes that overlap by 0.75 are one, and a box without an area is none"),
        pytest.param({"iou": 0.8}, 3, id="iou"),
        pytest.param({"min_score": 0.3}, 1, id="min_score"),
        pytest.param({"max_boxes": 1}, 1, id="max_boxes"),
    ],
)
def test_the_files_keys_count(options: dict[str, Any], expected: int) -> None:
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.9, 0.0], [0.1, 0.1, 0.5, 0.4, 0.6, 0.0], [0.6, 0.6, 0.9, 0.9, 0.2, 0.0]]])
    flat = torch.tensor([[[0.6, 0.6, 0.6, 0.9, 0.99, 0.0]]])
    fused = Example("weighted_boxes", "detection", ((3, 6), (1, 6)), options=options).fuse([boxes, flat])
    assert (fused.prediction[..., 4] > 0).sum() == expected
    fusion = Example("weighted_boxes", "detection", ((3, 6), (1, 6)), options={"min_score": 0.3, "max_boxes": 2}).build()
    torch.testing.assert_close(fusion.member_prediction(0, boxes), boxes[:, :2])


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
        pytest.param((1, 5, 4), (1, 5), None, {"score_kind": "softmax"}, "score_kind: 'softmax' of scores", id="no softmax"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    boxes: tuple[int, ...], scores: tuple[int, ...], labels: tuple[int, ...] | None, keys: dict[str, Any], message: str
) -> None:
    zeros = None if labels is None else torch.zeros(labels)
    with pytest.raises(ValueError, match=message):
        pack_detections(torch.zeros(boxes), torch.zeros(scores), zeros, make_spec(**keys), SIZE)

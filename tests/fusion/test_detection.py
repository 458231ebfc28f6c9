"""Boxes of several detectors made one set, against the package `ensemble-boxes`, whose authors wrote the paper."""

import copy

import ensemble_boxes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.fusions import Example, draw_boxes
from twinfer_server.fusion import Fused, best_boxes, measure_overlaps, nms, renormalise, weighted_boxes_fusion

FEWER = settings(max_examples=40)
MAX_BOXES = 40
Floats = NDArray[np.float64]


def draw_rows(seed: int, rows: int, members: int, most: int) -> tuple[list[Tensor], Tensor]:
    """Draw boxes for every member, NaN where it is absent, and weights that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (members,), generator=generator).tolist()
    boxes = [draw_boxes(rows, count, generator) for count in counts]
    for one in boxes:  # some places are empty
        one[torch.rand(one.shape[:2], generator=generator) < 0.2] = 0.0
    present = torch.rand(rows, members, generator=generator) < 0.8
    weights = renormalise(0.1 + torch.rand(rows, members, generator=generator), present)
    for member, one in enumerate(boxes):
        one[~present[:, member]] = torch.nan
    return boxes, weights


def package_boxes(boxes: list[Tensor], weights: Tensor, row: int, *, is_weighted: bool, iou: float) -> Floats:
    """Have the package fuse one row: [boxes, 6], highest score first."""
    rows = [(one[row], weights[row, member].item()) for member, one in enumerate(boxes) if weights[row, member] > 0]
    kept = [(one[one[:, 4] > 0].double().numpy(), weight) for one, weight in rows]
    if not any(len(one) for one, _ in kept):
        return np.zeros((0, 6))
    corners, scores, labels = ([one[:, columns] for one, _ in kept] for columns in (slice(0, 4), 4, 5))
    if is_weighted:
        found = ensemble_boxes.weighted_boxes_fusion(corners, scores, labels, weights=[w for _, w in kept], iou_thr=iou)
    else:
        found = ensemble_boxes.nms(corners, scores, labels, iou_thr=iou)
    merged: Floats = np.concatenate([found[0], found[1][:, None], found[2][:, None]], axis=1)
    merged[:, 4] = np.minimum(merged[:, 4], 1.0)
    return merged[np.argsort(-merged[:, 4], kind="stable")]


@pytest.mark.parametrize("is_weighted", [True, False], ids=["weighted boxes fusion", "non-maximum suppression"])
@FEWER
@given(
    seed=st.integers(0, 100_000),
    rows=st.integers(1, 3),
    members=st.integers(1, 3),
    most=st.integers(1, 12),
    iou=st.sampled_from([0.0, 0.3, 0.55, 0.9]),
)
def test_equals_the_package_over_the_present_members(
    is_weighted: bool, seed: int, rows: int, members: int, most: int, iou: float
) -> None:
    boxes, weights = draw_rows(seed, rows, members, most)
    pool = weighted_boxes_fusion if is_weighted else nms
    found = pool(boxes, weights, iou, MAX_BOXES)
    assert found.shape == (rows, MAX_BOXES, 6)
    for row in range(rows):
        expected = package_boxes(copy.deepcopy(boxes), weights, row, is_weighted=is_weighted, iou=iou)
        np.testing.assert_allclose(found[row, : len(expected)].numpy(), expected, atol=1e-5)
        assert not found[row, len(expected) :].any()

    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows))
    permuted = pool([one[order] for one in boxes], weights[order], iou, MAX_BOXES)
    torch.testing.assert_close(permuted, found[order])


def test_two_detectors_and_one_object() -> None:
    """Edges are the mean by score, the score is the mean score: eq. 1 to 3 of Solovyev, Wang & Gabruseva 2021."""
    one = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.8, 2.0]]])
    other = torch.tensor([[[0.1, 0.2, 0.5, 0.5, 0.4, 2.0]]])
    found = weighted_boxes_fusion([one, other], torch.tensor([[0.5, 0.5]]), 0.55, 1)
    torch.testing.assert_close(found, torch.tensor([[[0.1, (0.8 * 0.1 + 0.4 * 0.2) / 1.2, 0.5, 0.5, 0.6, 2.0]]]))


def test_what_only_one_of_two_detectors_sees_is_half_as_certain() -> None:
    one, nothing = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.8, 2.0]]]), torch.zeros(1, 1, 6)
    found = weighted_boxes_fusion([one, nothing], torch.tensor([[0.5, 0.5]]), 0.55, 1)
    assert found[0, 0, 4].item() == pytest.approx(0.4)
    found = weighted_boxes_fusion([one, nothing * torch.nan], torch.tensor([[1.0, 0.0]]), 0.55, 1)
    torch.testing.assert_close(found, one)  # the other was not asked


def test_boxes_of_other_classes_are_left_alone() -> None:
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.8, 0.0], [0.1, 0.1, 0.5, 0.5, 0.7, 1.0]]])
    for pool in (nms, weighted_boxes_fusion):
        torch.testing.assert_close(pool([boxes], torch.ones(1, 1), 0.5, 2), boxes)


@pytest.mark.parametrize("max_boxes", [1, 3, 50])
def test_the_best_come_first_and_empty_places_last(max_boxes: int) -> None:
    boxes = draw_boxes(2, 6, torch.Generator().manual_seed(0))
    shuffled = boxes[:, [3, 1, 5, 0, 4, 2]]
    shuffled[0, 2] = 0.0
    found = best_boxes(shuffled, max_boxes)
    assert found.shape == (2, max_boxes, 6)
    torch.testing.assert_close(found[1, :6], boxes[1, :max_boxes])
    torch.testing.assert_close(found[0, :5], boxes[0, :5][:max_boxes])
    assert not found[0, 5:].any()


@given(seed=st.integers(0, 1000))
def test_overlaps_equal_counted_cells(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = np.sort(random.integers(0, 9, (2, 2, 2)), axis=1).reshape(2, 4)
    cells = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in corners]
    union = len(cells[0] | cells[1])
    boxes = torch.from_numpy(corners / 8).float()
    expected = len(cells[0] & cells[1]) / union if union else 0.0
    assert measure_overlaps(boxes[:1], boxes[1:]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["nms", "weighted_boxes"])
def test_the_files_keys_count(method: str) -> None:
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.9, 0.0], [0.1, 0.1, 0.5, 0.4, 0.6, 0.0], [0.6, 0.6, 0.9, 0.9, 0.2, 0.0]]])
    flat = torch.tensor([[[0.6, 0.6, 0.6, 0.9, 0.99, 0.0]]])
    weights, everyone = torch.tensor([[0.5, 0.5]]), torch.tensor([[1, 1]])

    def count(**options: float) -> int:
        fusion = Example(method, "detection", ((3, 6), (1, 6)), options=options).build()
        fused: Fused = fusion([boxes, flat], weights, everyone)
        return int((fused.prediction[..., 4] > 0).sum())

    assert count() == 2  # overlapping by 0.75, and a box without an area is none
    assert count(iou=0.8) == 3
    assert count(min_score=0.3) == 1
    assert count(max_boxes=1) == 1
    fusion = Example(method, "detection", ((3, 6), (1, 6)), options={"min_score": 0.3, "max_boxes": 2}).build()
    torch.testing.assert_close(fusion.belief(0, boxes), boxes[:, :2])

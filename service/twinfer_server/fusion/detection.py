"""Fusing detections: boxes, float32 [requests, boxes, 6] of x_min, y_min, x_max, y_max (0..1), score and class.

A score of 0 marks no box. All runs a fixed number of steps over tensors of fixed shape, whatever the boxes are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..spec import OutputSpec
from .fusion import TINY, Fusion

_SHAPES = "boxes [samples, boxes, 4], with scores [samples, boxes, classes], or scores and labels [samples, boxes]"


def pack_detections(boxes: Tensor, scores: Tensor, labels: Tensor | None, spec: OutputSpec, size: Sequence[int]) -> Tensor:
    """Pack a detector's outputs into one tensor as the fusion takes them; raises ValueError where shapes do not fit.

    boxes: [samples, boxes, 4], as `spec.box_format` and `spec.box_units` say; `size` is the height and width that pixels are of.
    scores: [samples, boxes, classes] as `spec.score_kind` says, of which each box's best class counts; or [samples, boxes].
    labels: the classes' indexes, [samples, boxes]; None with one score for a box means that there is one class, 0.
    Returns float32 [samples, boxes, 6], highest score first. What is not finite stays so, as NaN.
    """
    has_classes = scores.ndim == 3
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2] or scores.ndim not in (2, 3):
        raise ValueError(f"found boxes {list(boxes.shape)} and scores {list(scores.shape)}; allowed: {_SHAPES}")
    if labels is not None and (has_classes or labels.shape != scores.shape):
        raise ValueError(f"found scores {list(scores.shape)} and labels {list(labels.shape)}; allowed: {_SHAPES}")
    if spec.score_kind == "softmax" and not (has_classes and scores.shape[2] > 1):
        raise ValueError(f"score_kind: 'softmax' of scores {list(scores.shape)}; allowed: [samples, boxes, classes + 1]")
    corners, scores = _find_corners(boxes.float(), spec, size), scores.float()
    if spec.score_kind == "sigmoid":
        scores = scores.sigmoid()
    elif spec.score_kind == "softmax":
        scores = scores.softmax(-1)[..., :-1]
    if has_classes:
        scores, classes = scores.max(-1)
    else:
        classes = torch.zeros_like(scores) if labels is None else labels
    packed = torch.cat([corners, scores.unsqueeze(-1), classes.float().unsqueeze(-1)], dim=-1)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return _reorder(packed, order)


def _find_corners(boxes: Tensor, spec: OutputSpec, size: Sequence[int]) -> Tensor:
    """Return the corners as parts of the image, within it."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if spec.box_format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif spec.box_format == "xywh":
        second = first + second
    if spec.box_units == "pixels":
        height, width = size
        first, second = (torch.stack([edge[..., 0] / width, edge[..., 1] / height], dim=-1) for edge in (first, second))
    corners = torch.cat([first, second], dim=-1)
    # Clamping would make a good number of an infinity.
    return corners.clamp(0.0, 1.0).masked_fill(~corners.isfinite(), torch.nan)


def measure_overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of every box with every other: float [..., n, 4] and [..., m, 4] -> [..., n, m]."""
    one, other = boxes.unsqueeze(-2), others.unsqueeze(-3)
    sides = torch.minimum(one[..., 2:4], other[..., 2:4]) - torch.maximum(one[..., :2], other[..., :2])
    shared = sides.clamp_min(0.0).prod(-1)
    area, other_area = ((box[..., 2:4] - box[..., :2]).prod(-1) for box in (one, other))
    return shared / (area + other_area - shared).clamp_min(TINY)


def best_boxes(boxes: Tensor, count: int) -> Tensor:
    """Put the highest score first and keep so many: float [requests, n, 6] -> [requests, count, 6], filled up with 0."""
    kept = _reorder(boxes, boxes[..., 4].argsort(dim=-1, descending=True, stable=True)[:, :count])
    kept = kept.masked_fill(kept[..., 4:5] <= 0, 0.0)
    return functional.pad(kept, (0, 0, 0, count - kept.shape[1]))


def weighted_boxes_fusion(boxes: Sequence[Tensor], weights: Tensor, iou: float, max_boxes: int) -> Tensor:
    """Merge boxes of one class that overlap by more than `iou` into one that lies between them, by score and weight.

    boxes: one float32 [requests, boxes of the member, 6] per member; of each the best `max_boxes` are looked at.
    weights: as `Fusion.fuse` has them.
    Returns float32 [requests, max_boxes, 6], highest score first.
    Boxes come in the order of w_m s, and each joins the merged box that it overlaps most, or begins a new one. Its edges are
    sum(w_m s x) / sum(w_m s), its score is sum(w_m s) / n * min(n, members there), at most 1; n boxes have joined it.
    Source: Solovyev, Wang & Gabruseva 2021, "Weighted boxes fusion"; as the package `ensemble-boxes` computes it ("avg").
    """
    boxes = [best_boxes(one, min(max_boxes, one.shape[1])) for one in boxes]
    by_box = torch.cat([weights[:, member, None].expand(-1, one.shape[1]) for member, one in enumerate(boxes)], dim=1)
    everything = torch.cat(boxes, dim=1).masked_fill((by_box <= 0).unsqueeze(-1), 0.0)
    scores, order = (everything[..., 4] * by_box).sort(dim=-1, descending=True, stable=True)
    in_order = _reorder(everything, order)
    requests, count, _ = everything.shape
    indexes = torch.arange(count, device=everything.device)
    is_box, ones = scores > 0, torch.ones_like(scores)
    # What a box adds to the one it joins, [requests, boxes, 6]: w s x for its 4 edges, w s, and 1.
    added = torch.cat([scores.unsqueeze(-1) * in_order[..., :4], scores.unsqueeze(-1), ones.unsqueeze(-1)], dim=-1)
    sums, classes = torch.zeros_like(added), torch.full_like(scores, -1.0)
    used = indexes.new_zeros(requests, 1)
    for box, share, is_one in zip(in_order.split(1, dim=1), added.split(1, dim=1), is_box.split(1, dim=1), strict=True):
        edges = sums[..., :4] / sums[..., 4:5].clamp_min(TINY)
        overlap = measure_overlaps(box, edges).squeeze(1).masked_fill(classes != box[..., 5], -1.0)
        best, index = overlap.max(-1, keepdim=True)
        is_new = best <= iou
        is_joined = (indexes == torch.where(is_new, used, index)) & is_one
        sums = torch.addcmul(sums, is_joined.unsqueeze(-1).to(share.dtype), share)
        classes = torch.where(is_joined, box[..., 5], classes)
        used = used + (is_new & is_one)
    edges = sums[..., :4] / sums[..., 4:5].clamp_min(TINY)
    members = (weights > 0).sum(-1, keepdim=True).float()
    merged = sums[..., 4] / sums[..., 5].clamp_min(1.0) * torch.minimum(sums[..., 5], members)
    return best_boxes(torch.cat([edges, merged.clamp_max(1.0).unsqueeze(-1), classes.unsqueeze(-1)], dim=-1), max_boxes)


class DetectionFusion(Fusion):
    """Fuses the boxes of several detectors, or those of one that overlap."""

    def __init__(self, fused_members: Sequence[int], iou: float, min_score: float, max_boxes: int) -> None:
        """Merge boxes from an overlap of `iou`; those below `min_score` are not looked at."""
        super().__init__(fused_members)
        self.iou, self.min_score, self.max_boxes = iou, min_score, max_boxes

    def fuse(self, values: Sequence[Tensor], weights: Tensor, counts: Tensor) -> Tensor:
        """Merge the members' boxes; see `Fusion.fuse`."""
        return weighted_boxes_fusion([self._drop_boxes(boxes) for boxes in values], weights, self.iou, self.max_boxes)

    def member_prediction(self, member: int, output: Tensor) -> Tensor:
        """Return the member's own best boxes, float32 [requests, max_boxes, 6]."""
        return best_boxes(self._drop_boxes(output.float()), self.max_boxes)

    def _drop_boxes(self, boxes: Tensor) -> Tensor:
        """Set boxes below `min_score`, and those without an area, to 0: float [requests, boxes, 6]."""
        is_flat = (boxes[..., 2:4] <= boxes[..., :2]).any(-1)
        return boxes.masked_fill((is_flat | (boxes[..., 4] < self.min_score)).unsqueeze(-1), 0.0)


def _reorder(boxes: Tensor, order: Tensor) -> Tensor:
    return boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 6))

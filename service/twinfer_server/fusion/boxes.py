"""The ways to make one set of boxes out of several: `[rows, boxes, 6]` of x_min, y_min, x_max, y_max (0..1), score and class.

A score of 0 marks an empty place. All run a fixed number of steps over tensors of fixed shape, whatever the boxes are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .weights import TINY

BoxPool = Callable[[Sequence[Tensor], Tensor, float, int], Tensor]
"""(one float32 [rows, boxes, 6] per member, weights float32 [rows, members], iou, max_boxes) -> float32 [rows, max_boxes, 6]."""


def measure_overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Give the intersection over union of every box with every other: float [..., n, 4] and [..., m, 4] -> [..., n, m]."""
    one, other = boxes.unsqueeze(-2), others.unsqueeze(-3)
    sides = torch.minimum(one[..., 2:4], other[..., 2:4]) - torch.maximum(one[..., :2], other[..., :2])
    shared = sides.clamp_min(0.0).prod(-1)
    return shared / (_area(one) + _area(other) - shared).clamp_min(TINY)


def best_boxes(boxes: Tensor, count: int) -> Tensor:
    """Put the highest score first and keep so many: float [rows, n, 6] -> [rows, count, 6], empty places filled with 0."""
    order = boxes[..., 4].argsort(dim=-1, descending=True, stable=True)[:, :count]
    kept = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 6))
    kept = kept.masked_fill(kept[..., 4:5] <= 0, 0.0)
    return functional.pad(kept, (0, 0, 0, count - kept.shape[1]))


def nms(boxes: Sequence[Tensor], weights: Tensor, iou: float, max_boxes: int) -> Tensor:
    """Keep, of boxes of one class that overlap by more than `iou`, the one with the highest score (hard, greedy).

    boxes: one float32 [rows, boxes of the member, 6] per member.
    weights: float32 [rows, members]; 0 for an absent member. Only that counts: a score scaled by a weight is none to compare.
    Returns float32 [rows, max_boxes, 6], highest score first.
    Source: Neubeck & Van Gool 2006, "Efficient non-maximum suppression".
    """
    everything, _ = _join(boxes, weights)
    scores, places = everything[..., 4], torch.arange(everything.shape[1], device=everything.device)
    kept = []
    for _ in range(min(max_boxes, everything.shape[1])):
        best, place = scores.max(-1, keepdim=True)
        chosen = everything.gather(1, place.unsqueeze(-1).expand(-1, -1, 6))
        kept.append(chosen.masked_fill((best <= 0).unsqueeze(-1), 0.0))
        overlap = measure_overlaps(chosen, everything).squeeze(1)
        is_same = (overlap > iou) & (everything[..., 5] == chosen[..., 5])
        scores = scores.masked_fill(is_same | (places == place), 0.0)
    found = torch.cat(kept, dim=1)
    return functional.pad(found, (0, 0, 0, max_boxes - found.shape[1]))


def weighted_boxes_fusion(boxes: Sequence[Tensor], weights: Tensor, iou: float, max_boxes: int) -> Tensor:
    """Merge boxes of one class that overlap by more than `iou` into one that lies between them, by score and weight.

    boxes: one float32 [rows, boxes of the member, 6] per member; of each the best `max_boxes` are looked at.
    weights: float32 [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float32 [rows, max_boxes, 6], highest score first.
    Boxes come in the order of w_m s, and each joins the merged box that it overlaps most, or begins a new one. Its edges are
    sum(w_m s x) / sum(w_m s), its score is sum(w_m s) / n * min(n, members there), at most 1; n boxes have joined it.
    Source: Solovyev, Wang & Gabruseva 2021, "Weighted boxes fusion"; as the package `ensemble-boxes` computes it ("avg").
    """
    everything, shares = _join([best_boxes(one, min(max_boxes, one.shape[1])) for one in boxes], weights)
    scores, order = (everything[..., 4] * shares).sort(dim=-1, descending=True, stable=True)
    boxes_in_order = everything.gather(1, order.unsqueeze(-1).expand(-1, -1, 6))
    rows, count, _ = everything.shape
    places = torch.arange(count, device=everything.device)
    is_box, ones = scores > 0, torch.ones_like(scores)
    # What a box adds to the one it joins, [rows, boxes, 6]: w s x for its 4 edges, w s, and 1.
    shares_of = torch.cat([scores.unsqueeze(-1) * boxes_in_order[..., :4], scores.unsqueeze(-1), ones.unsqueeze(-1)], dim=-1)
    sums, classes = torch.zeros_like(shares_of), torch.full_like(scores, -1.0)
    used = places.new_zeros(rows, 1)
    for box, share, is_one in zip(boxes_in_order.split(1, dim=1), shares_of.split(1, dim=1), is_box.split(1, dim=1), strict=True):
        edges = sums[..., :4] / sums[..., 4:5].clamp_min(TINY)
        overlap = measure_overlaps(box, edges).squeeze(1).masked_fill(classes != box[..., 5], -1.0)
        best, place = overlap.max(-1, keepdim=True)
        is_new = best <= iou
        is_joined = (places == torch.where(is_new, used, place)) & is_one
        sums = torch.addcmul(sums, is_joined.unsqueeze(-1).to(share.dtype), share)
        classes = torch.where(is_joined, box[..., 5], classes)
        used = used + (is_new & is_one)
    edges = sums[..., :4] / sums[..., 4:5].clamp_min(TINY)
    members = (weights > 0).sum(-1, keepdim=True).float()
    merged = sums[..., 4] / sums[..., 5].clamp_min(1.0) * torch.minimum(sums[..., 5], members)
    return best_boxes(torch.cat([edges, merged.clamp_max(1.0).unsqueeze(-1), classes.unsqueeze(-1)], dim=-1), max_boxes)


def _join(boxes: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Put all members' boxes side by side, those of the absent empty: float32 [rows, n, 6], and their weights [rows, n]."""
    shares = [weights[:, member, None].expand(-1, one.shape[1]) for member, one in enumerate(boxes)]
    everything, by_box = torch.cat(list(boxes), dim=1), torch.cat(shares, dim=1)
    return everything.masked_fill((by_box <= 0).unsqueeze(-1), 0.0), by_box


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:4] - boxes[..., :2]).prod(-1)

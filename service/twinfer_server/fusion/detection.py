"""Fusing detections: of several detectors, or of one detector and a classifier that looks at what it has found."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .boxes import BoxPool, best_boxes
from .fusion import Fused, Fusion
from .opinion import OpinionFusion

MAX_BOXES = 100
IOU = 0.55
"""What `ensemble-boxes` begins with."""


class DetectionFusion(Fusion):
    """Fuses the boxes of several detectors."""

    def __init__(
        self, pool: BoxPool, voters: Sequence[int], *, iou: float, min_score: float = 0.0, max_boxes: int = MAX_BOXES
    ) -> None:  # fmt: skip
        """Take the way to fuse; boxes below `min_score` are not looked at."""
        super().__init__(voters)
        self.pool, self.iou, self.min_score, self.max_boxes = pool, iou, min_score, max_boxes

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Fuse the members' boxes; see `Fusion.forward`."""
        votes = self.hear(outputs, weights, samples)
        boxes = [drop_boxes(value, self.min_score) for value in votes.values]
        return self.conclude(votes, weights.shape[1], self.pool(boxes, votes.shares, self.iou, self.max_boxes))

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's own best boxes, float32 [rows, max_boxes, 6]."""
        return best_boxes(drop_boxes(output.float(), self.min_score), self.max_boxes)


class CropsFusion(OpinionFusion):
    """Fuses a detector with a classifier that looks at the crops of its best boxes: where from the one, what from the other."""

    def __init__(
        self, kinds: Mapping[int, str], temperatures: Sequence[float], *, min_crop_score: float = 0.0, min_score: float = 0.0,
        max_boxes: int = MAX_BOXES,
    ) -> None:  # fmt: skip
        """Take both members' output kinds, "detections" one of them; boxes below `min_crop_score` have no crops."""
        super().__init__(kinds, temperatures)
        self.detector = next(member for member, kind in kinds.items() if kind == "detections")
        self.needs = frozenset({self.detector})
        self.min_crop_score, self.min_score, self.max_boxes = min_crop_score, min_score, max_boxes

    def read(self, member: int, output: Tensor, count: Tensor | None = None) -> Tensor:
        """Give boxes, float32 [rows, boxes, 6], or calibrated logits, float32 [rows, crops, classes], 0 beyond a row's crops."""
        if member == self.detector:
            return output.float()
        logits = super().read(member, output)
        if count is None:
            return logits
        logits = logits.reshape(len(logits), -1, logits.shape[-1])
        beyond = torch.arange(logits.shape[1], device=logits.device) >= count.unsqueeze(-1)
        return logits.masked_fill(beyond.unsqueeze(-1), 0.0)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Give the crops' boxes the classifier's best class; see `Fusion.forward`.

        The score is the detector's times the class's probability. A row that the classifier is absent from, or has no weight for,
        keeps what the detector says.
        """
        votes = self.hear(outputs, weights, samples)
        place = self.voters.index(self.detector)
        boxes, logits = votes.values[place], votes.values[1 - place]
        boxes = boxes.masked_fill(votes.counts[:, place].view(-1, 1, 1) == 0, 0.0)
        crops = drop_boxes(boxes[:, : logits.shape[1]], max(self.min_score, self.min_crop_score))
        probability, label = logits[:, : crops.shape[1]].softmax(-1).max(-1)
        beyond = torch.arange(crops.shape[1], device=crops.device) >= votes.counts[:, 1 - place, None]
        score = (crops[..., 4] * probability).masked_fill(beyond, 0.0)
        classified = torch.cat([crops[..., :4], torch.stack([score, label.float()], dim=-1)], dim=-1)
        is_classified = (votes.shares[:, 1 - place] > 0).view(-1, 1, 1)
        alone = self.belief(self.detector, boxes)
        return self.conclude(votes, weights.shape[1], torch.where(is_classified, best_boxes(classified, self.max_boxes), alone))

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the detector's own best boxes, float32 [rows, max_boxes, 6]; of the classifier its calibrated probabilities."""
        if member != self.detector:
            return super().belief(member, output)
        return best_boxes(drop_boxes(output.float(), self.min_score), self.max_boxes)


def drop_boxes(boxes: Tensor, min_score: float) -> Tensor:
    """Empty the places of boxes below `min_score`, and of those without an area: float [rows, boxes, 6]."""
    is_flat = (boxes[..., 2:4] <= boxes[..., :2]).any(-1)
    return boxes.masked_fill((is_flat | (boxes[..., 4] < min_score)).unsqueeze(-1), 0.0)

"""Attribution: how far apart two fused predictions are, such as one with and one without a member."""

import torch
from torch import Tensor
from torch.nn import functional

from ..spec import Task
from .detection import measure_overlaps
from .fusion import TINY
from .similarity import measure_cosines
from .tensors import measure_length

SAME_BOX = 0.5
"""The intersection over union from which a box lies over another."""


def attribution_delta(task: Task, one: Tensor, other: Tensor) -> Tensor:
    """Return how far apart two predictions for the same requests are, float32 [requests], 0 to 1.

    one, other: float32, predictions of `task` as `FusionResult.prediction` has them, of the same shape (of similarities, either may
    be longer).
    Classes: half the sum of the differences of their probabilities (total variation). Labels, similarities: the mean difference of
    their probabilities. Embeddings: half of 1 less the cosine. Boxes: the part of all scores that belongs to boxes without a box of
    their class over them in the other. Tensors: the distance of the two over the sum of their lengths.
    """
    if task == "classification":
        delta = (one - other).abs().sum(-1) / 2
    elif task == "multi_label":
        delta = (one - other).abs().mean(-1)
    elif task == "embedding":
        delta = (1 - measure_cosines(one, other.unsqueeze(1)).squeeze(-1)) / 2
    elif task == "similarity":
        length = max(one.shape[1], other.shape[1])
        one, other = (functional.pad(values, (0, 0, 0, length - values.shape[1])) for values in (one, other))
        is_used = ((one != 0) | (other != 0)).any(-1)
        delta = (one - other)[..., 1].abs().sum(-1) / is_used.sum(-1).clamp_min(1)
    elif task == "detection":
        scores = one[..., 4].sum(-1) + other[..., 4].sum(-1)
        delta = (_lone_scores(one, other) + _lone_scores(other, one)) / scores.clamp_min(TINY)
    else:
        one, other = one.reshape(len(one), -1).double(), other.reshape(len(other), -1).double()
        delta = torch.linalg.vector_norm(one - other, dim=-1) / (measure_length(one) + measure_length(other))
    return delta.float().clamp(0.0, 1.0)  # rounding may step over the edge


def _lone_scores(boxes: Tensor, others: Tensor) -> Tensor:
    """Add up the scores of boxes without one of their class over them among the others: float32 [requests]."""
    is_over = measure_overlaps(boxes, others) >= SAME_BOX
    is_over &= (boxes[..., 5].unsqueeze(-1) == others[..., 5].unsqueeze(-2)) & (others[..., 4] > 0).unsqueeze(-2)
    return boxes[..., 4].masked_fill(is_over.any(-1), 0.0).sum(-1)

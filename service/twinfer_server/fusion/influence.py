"""How far apart two fused predictions are."""

from torch import Tensor


def moved(task: str, one: Tensor, other: Tensor) -> Tensor:
    """Give half the sum of the differences (total variation), float32 [rows]; both are probabilities [rows, classes]."""
    return (one - other).abs().sum(-1) / 2

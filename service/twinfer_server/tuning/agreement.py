"""Agreement: how far a member's outputs are from those of the same model in fp32, eagerly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close outputs are to the reference.

    `largest_error` is the largest absolute difference of any element over the largest absolute value of the reference; infinite
    where an element is not finite that should be. `cosine` is that of the sample that turned most. `top_1` is the share of samples
    whose best class stayed the same; None for outputs that have no classes.
    """

    largest_error: float
    cosine: float
    top_1: float | None


def measure_agreement(reference: Sequence[Tensor], outputs: Sequence[Tensor], has_classes: bool) -> Agreement:
    """Compare all outputs of a member, float32 [samples, ...] each; the first is the one that counts, and has the classes."""
    largest, cosine = 0.0, 1.0
    for wanted, found in zip(reference, outputs, strict=True):
        if wanted.shape != found.shape:
            return Agreement(math.inf, 0.0, 0.0 if has_classes else None)
        scale = wanted.abs().max().item() or 1.0
        error = (found - wanted).abs().max().item() / scale
        turned = functional.cosine_similarity(wanted.flatten(1), found.flatten(1)).min().item()
        largest = max(largest, error if math.isfinite(error) else math.inf)
        cosine = min(cosine, turned if math.isfinite(turned) else 0.0)
    top_1 = (reference[0].argmax(-1) == outputs[0].argmax(-1)).float().mean().item() if has_classes else None
    return Agreement(largest, cosine, top_1)

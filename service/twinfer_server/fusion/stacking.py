"""Stacking: a small head that has learnt from labelled rows what the members' opinions are worth together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .fusion import Fused
from .opinion import OpinionFusion

MIN_FEATURE = -20.0
"""In nats. A belief of 2e-9 and one of 1e-30 say the same to a head, and would move it very differently."""


class StackingHead(nn.Module):
    """A linear layer, or one hidden layer with GELU, from the members' opinions to fused logits.

    Source: Wolpert 1992, "Stacked generalization"; Ting & Witten 1999, "Issues in stacked generalization" (on probabilities).
    """

    def __init__(self, members: int, outputs: int, hidden: int = 0) -> None:
        """Take opinions of `members` voters about `outputs` classes or labels; `hidden` 0 is the linear head."""
        super().__init__()
        width = members * (outputs + 1)
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.out = nn.Linear(hidden or width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Turn what `stacking_features` gives, float [rows, voters * (outputs + 1)], into logits, float [rows, outputs]."""
        if self.hidden is not None:
            features = nn.functional.gelu(self.hidden(features))
        logits: Tensor = self.out(features)
        return logits


def stacking_features(logits: Tensor, present: Tensor) -> Tensor:
    """Write out the members' opinions as the head takes them, in training and in serving alike.

    logits: float [voters, rows, classes], calibrated; or [voters, rows, labels, 2], no and yes, for multi_label.
    present: bool [rows, voters]; what an absent voter's part of `logits` holds means nothing.
    Returns float [rows, voters * (outputs + 1)]: voter by voter the log-probabilities of the classes, or the log odds of the
    labels, clamped to MIN_FEATURE (log odds from above, too) and 0 where it is absent; then for each voter 1 or 0, whether it is
    there.
    """
    beliefs = logits.log_softmax(-1)
    if beliefs.ndim == 4:
        beliefs = (beliefs[..., 1] - beliefs[..., 0]).clamp_max(-MIN_FEATURE)
    absent = present.t().unsqueeze(-1).logical_not()
    opinions = beliefs.clamp_min(MIN_FEATURE).masked_fill(absent, 0.0)
    return torch.cat([*opinions.unbind(), present.to(opinions.dtype)], dim=-1)


class StackingFusion(OpinionFusion):
    """Fuses opinions with a fitted head. Knows no weights: a member without weight is absent, the rest is the head's."""

    def __init__(
        self, head: StackingHead, kinds: Mapping[int, str], temperatures: Sequence[float], *, is_multi_label: bool = False
    ) -> None:  # fmt: skip
        """Take the head; the rest as `OpinionFusion` has it."""
        super().__init__(kinds, temperatures, is_multi_label=is_multi_label)
        self.head = head.requires_grad_(requires_grad=False)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Have the head judge the members' opinions; see `Fusion.forward`."""
        votes = self.hear_opinions(outputs, weights, samples)
        fused = self.head(stacking_features(votes.logits, votes.shares > 0))
        prediction = fused.sigmoid() if self.is_multi_label else fused.softmax(-1)
        return self.conclude(votes, weights.shape[1], prediction, self.disagree(votes.logits, votes.shares))

"""Fusing opinions: members with distributions over the same classes, or with probabilities of the same labels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .fusion import Fusion, FusionResult, is_finite, renormalise
from .pools import Pool, measure_disagreement, sharpen

MIN_LOG_PROBABILITY = -87.0
"""What log 0 becomes, near the smallest normal fp32: one member's 0 all but rules a class out, and members that rule
out every class between them still have a pool."""
ROUNDING = 1e-2
"""How far a probability may be beyond 0 to 1 and still mean the edge: half precision, and thousands of classes."""
MIN_FEATURE = -20.0
"""In nats. A probability of 2e-9 and one of 1e-30 say the same to a head, and would move it very differently."""


class StackingHead(nn.Module):
    """A linear layer, or one hidden layer with GELU, from the members' opinions to fused logits.

    Source: Wolpert 1992, "Stacked generalization"; Ting & Witten 1999, "Issues in stacked generalization" (on probabilities).
    """

    def __init__(self, members: int, outputs: int, hidden: int = 0) -> None:
        """Take opinions of `members` fused members about `outputs` classes or labels; `hidden` 0 is the linear head."""
        super().__init__()
        width = members * (outputs + 1)
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.out = nn.Linear(hidden or width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features of `stacking_features`, float [requests, members * (outputs + 1)], into logits, [requests, outputs]."""
        if self.hidden is not None:
            features = nn.functional.gelu(self.hidden(features))
        logits: Tensor = self.out(features)
        return logits


def stacking_features(logits: Tensor, present: Tensor) -> Tensor:
    """Write out the members' opinions as the head takes them, in training and in serving alike.

    logits: float [members, requests, classes], calibrated; or [members, requests, labels, 2], no and yes, for multi_label.
    present: bool [requests, members].
    Returns float [requests, members * (outputs + 1)]: member by member the log-probabilities of the classes, or the log odds of
    the labels, clamped to MIN_FEATURE (log odds from above, too) and 0 where it is absent; then 1 or 0, whether it is present.
    """
    opinions = logits.log_softmax(-1)
    if opinions.ndim == 4:
        opinions = (opinions[..., 1] - opinions[..., 0]).clamp_max(-MIN_FEATURE)
    absent = present.t().unsqueeze(-1).logical_not()
    opinions = opinions.clamp_min(MIN_FEATURE).masked_fill(absent, 0.0)
    return torch.cat([*opinions.unbind(), present.to(opinions.dtype)], dim=-1)


class OpinionFusion(Fusion):
    """Fuses opinions, each calibrated by its member's temperature, with a pool or a fitted head.

    For multi_label every label is a question of its own with two answers, no and yes; for classification there is one question,
    and its answers are the classes. A head knows no weights: to it a member without weight is absent.
    Source: Guo et al. 2017, "On calibration of modern neural networks" (temperature scaling: logits / T).
    """

    temperatures: Tensor
    sharpness: Tensor | None

    def __init__(
        self, judge: Pool | StackingHead, kinds: Mapping[int, str], temperatures: Sequence[float], *, is_multi_label: bool,
        sharpness: float,
    ) -> None:  # fmt: skip
        """Take the pool or head, and how much `sharpen` does to what a pool returns.

        kinds: the output kind, "logits" or "probabilities", of every fused member by index.
        temperatures: one for each member of the ensemble.
        """
        super().__init__(tuple(kinds))
        self.judge = judge.requires_grad_(requires_grad=False) if isinstance(judge, StackingHead) else judge
        self.kinds = dict(kinds)
        self.is_multi_label = is_multi_label
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=torch.float32))
        self.register_buffer("sharpness", torch.tensor(sharpness) if sharpness else None)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> FusionResult:
        """Fuse the members' distributions, all in one tensor: in as many kernels for several as for one; see `Fusion.forward`.

        The disagreement is for multi_label the mean over the labels.
        """
        logits = torch.stack([self.read_logits(member, outputs[member]) for member in self.fused_members])
        logits = logits / self._fused_columns(self.temperatures.unsqueeze(0)).view(-1, *[1] * (logits.ndim - 1))
        present = (self._fused_columns(samples) > 0) & is_finite(logits.flatten(0, 1)).view(len(logits), -1).t()
        shares = renormalise(self._fused_columns(weights), present)
        questions, question_shares = flatten_questions(logits, shares)
        disagreement = measure_disagreement(questions, question_shares)
        if self.is_multi_label:
            disagreement = disagreement.view(len(weights), -1).mean(-1)
        if isinstance(self.judge, StackingHead):
            fused = self.judge(stacking_features(logits, shares > 0))
            prediction = fused.sigmoid() if self.is_multi_label else fused.softmax(-1)
        else:
            pooled = self.judge(questions, question_shares)
            if self.sharpness is not None:
                pooled = sharpen(pooled, question_shares, self.sharpness)
            prediction = self._pick_answers(pooled.exp().view(logits.shape[1:]))
        return self._make_result(prediction, shares, disagreement, present, weights.shape[1])

    def member_prediction(self, member: int, output: Tensor) -> Tensor:
        """Return the member's calibrated probabilities, float32 [requests, classes or labels]; NaN where not finite."""
        return self._pick_answers((self.read_logits(member, output) / self.temperatures[member]).softmax(-1))

    def read_logits(self, member: int, output: Tensor) -> Tensor:
        """Return logits before calibration, float32 [requests, classes], or [requests, labels, 2] for multi_label.

        A probability below 0, or a label's above 1, by more than ROUNDING becomes NaN, so the request's part is not finite.
        """
        output = output.float()
        if self.kinds[member] == "probabilities":
            # Within 0 to 1 but for what is no probability, of which a logarithm is NaN; a class's above 1 is normalised.
            is_edge = (output - 0.5).abs() <= 0.5 + ROUNDING
            output = torch.where(is_edge, output.clamp(0.0, 1.0), output)
            logs = torch.stack([torch.log1p(-output), output.log()], dim=-1) if self.is_multi_label else output.log()
            return logs.clamp_min(MIN_LOG_PROBABILITY)
        return torch.stack([torch.zeros_like(output), output], dim=-1) if self.is_multi_label else output

    def _pick_answers(self, probabilities: Tensor) -> Tensor:
        return probabilities[..., 1] if self.is_multi_label else probabilities


def flatten_questions(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Put every label's question beside the others, [members, requests * labels, 2] and weights [requests * labels, members].

    Classes, [members, requests, classes], are one question already.
    """
    if logits.ndim == 3:
        return logits, weights
    return logits.flatten(1, 2), weights.repeat_interleave(logits.shape[2], dim=0)

"""Fusing opinions: members that hold beliefs about the same classes, or about the same labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .disagreement import measure_disagreement
from .fusion import Fused, Fusion, is_finite
from .pool import Pool, sharpen
from .weights import renormalise

MIN_LOG_PROBABILITY = -87.0
"""What log 0 becomes, near the smallest normal fp32: one member's 0 all but rules a class out, and members that rule
out every class between them still have a pool."""

ROUNDING = 1e-2
"""How far a probability may be beyond 0 to 1 and still mean the edge: half precision, and thousands of classes."""


@dataclass(frozen=True, slots=True)
class Opinions:
    """What the voting members believe of some rows; one column for each of them, in the order of `Fusion.voters`.

    logits: float32 [voters, rows, classes], or [voters, rows, labels, 2], calibrated; an absent voter's rows may hold anything.
    shares: float32 [rows, voters]; 0 for the absent, summing to 1 over the present, all 0 where nobody is.
    present: bool [rows, voters]; who is there.
    """

    logits: Tensor
    shares: Tensor
    present: Tensor


class OpinionFusion(Fusion):
    """Fuses opinions, each calibrated by its member's temperature.

    For multi_label every label is a question of its own with two answers, no and yes; for classification there is one question,
    and its answers are the classes.
    Source: Guo et al. 2017, "On calibration of modern neural networks" (temperature scaling: logits / T).
    """

    temperatures: Tensor

    def __init__(self, kinds: Mapping[int, str], temperatures: Sequence[float], *, is_multi_label: bool = False) -> None:
        """Take the output kind, "logits" or "probabilities", of every voter by member index, and a temperature for each member."""
        super().__init__(tuple(kinds))
        self.kinds = dict(kinds)
        self.is_multi_label = is_multi_label
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=torch.float32))

    def read(self, member: int, output: Tensor, count: Tensor | None = None) -> Tensor:
        """Give calibrated logits, float32 [rows, classes], or [rows, labels, 2] for multi_label.

        A probability below 0, or a label's above 1, by more than ROUNDING becomes NaN, so the row counts as not finite.
        """
        return self._logits(member, output) / self.temperatures[member]

    def hear_opinions(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Opinions:
        """Do what `hear` does for all opinions at once: in as many kernels for several members as for one."""
        counts = self._of_voters(samples)
        logits = torch.stack([self._logits(member, outputs[member]) for member in self.voters])
        logits = logits / self._of_voters(self.temperatures.unsqueeze(0)).view(-1, *[1] * (logits.ndim - 1))
        present = (counts > 0) & is_finite(logits.flatten(0, 1)).view(len(logits), -1).t()
        return Opinions(logits, renormalise(self._of_voters(weights), present), present)

    def _logits(self, member: int, output: Tensor) -> Tensor:
        output = output.float()
        if self.kinds[member] == "probabilities":
            # Within 0 to 1 but for what is no probability, of which a logarithm is NaN; a class's above 1 is normalised.
            is_edge = (output - 0.5).abs() <= 0.5 + ROUNDING
            output = torch.where(is_edge, output.clamp(0.0, 1.0), output)
            beliefs = torch.stack([torch.log1p(-output), output.log()], dim=-1) if self.is_multi_label else output.log()
            return beliefs.clamp_min(MIN_LOG_PROBABILITY)
        return torch.stack([torch.zeros_like(output), output], dim=-1) if self.is_multi_label else output

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's calibrated probabilities, float32 [rows, classes or labels]; NaN in a row that is not finite."""
        beliefs = self.read(member, output).softmax(-1)
        return beliefs[..., 1] if self.is_multi_label else beliefs

    def disagree(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Measure the disagreement, float32 [rows]; for multi_label the mean over the labels.

        logits: float32 [voters, rows, classes], or [voters, rows, labels, 2]. shares: float32 [rows, voters].
        """
        disagreement = measure_disagreement(*flatten_questions(logits, shares))
        return disagreement.view(len(shares), -1).mean(-1) if self.is_multi_label else disagreement


class PoolFusion(OpinionFusion):
    """Fuses opinions with an opinion pool."""

    sharpness: Tensor | None

    def __init__(
        self, pool: Pool, kinds: Mapping[int, str], temperatures: Sequence[float], *, is_multi_label: bool = False,
        sharpness: float = 0.0,
    ) -> None:  # fmt: skip
        """Take the pool, and how much `sharpen` does to what it gives; the rest as `OpinionFusion` has it."""
        super().__init__(kinds, temperatures, is_multi_label=is_multi_label)
        self.pool = pool
        self.register_buffer("sharpness", torch.tensor(sharpness) if sharpness else None)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Pool the members' beliefs; see `Fusion.forward`."""
        votes = self.hear_opinions(outputs, weights, samples)
        questions, shares = flatten_questions(votes.logits, votes.shares)
        pooled = self.pool(questions, shares)
        if self.sharpness is not None:
            pooled = sharpen(pooled, shares, self.sharpness)
        beliefs = pooled.exp().view(votes.logits.shape[1:])
        prediction = beliefs[..., 1] if self.is_multi_label else beliefs
        return self.conclude(votes, weights.shape[1], prediction, self.disagree(votes.logits, votes.shares))


def flatten_questions(logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Make a row of every question, [voters, rows * labels, 2] and [rows * labels, voters]; classes are one question already."""
    if logits.ndim == 3:
        return logits, shares
    return logits.flatten(1, 2), shares.repeat_interleave(logits.shape[2], dim=0)

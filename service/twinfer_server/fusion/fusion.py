"""The module that turns member outputs into the fused output: the same on the device and, for late rows, on the CPU."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .disagreement import measure_disagreement
from .embedding import concatenation
from .pool import Pool
from .weights import renormalise

OutputKind = Literal["logits", "probabilities", "embedding"]

MAX_MAGNITUDE = 1e30
"""An output beyond it counts as not finite: differences of such numbers overflow fp32."""

MIN_LOG_PROBABILITY = -87.0
"""What log 0 becomes, near the smallest normal fp32: one member's 0 all but rules a class out, and members that rule
out every class between them still have a pool."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What the fusion says about each row of a flight; tensors on the fusion's device, not yet waited for.

    prediction: float32 [rows, classes], probabilities; or float32 [rows, features]. No answer where nobody is present.
    weights: float32 [rows, members], as they were used: 0 for the absent, summing to 1 over the present.
    disagreement: float32 [rows], 0..1; NaN where fewer than two members have weight, and for embeddings.
    present: bool [rows, members]; false for a member that was absent, or whose output for the row was not finite.
    """

    prediction: Tensor
    weights: Tensor
    disagreement: Tensor
    present: Tensor


class Fusion(nn.Module):
    """A fusion: whatever is fitted is a buffer of it, so that it moves, is copied and is saved as one thing.

    Weights are no buffer: they come with the rows, since any row may bring its own, and a second copy could differ.
    """

    def __init__(self, kinds: Sequence[OutputKind]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)

    @abstractmethod
    def forward(self, outputs: Sequence[Tensor], weights: Tensor, present: Tensor) -> Fused:
        """Fuse the members' outputs, row by row, over the members that are present and finite.

        outputs: one float [rows, classes or features] per member, as the member gave it; absent rows may hold anything.
        weights: float32 [rows, members], finite, at least 0; renormalised here.
        present: bool [rows, members].
        """

    @abstractmethod
    def belief(self, member: int, output: Tensor) -> Tensor:
        """Turn a member's output, float [rows, ...], into its own prediction: float32 [rows, classes or features]."""


class PoolFusion(Fusion):
    """Fuses beliefs over the same classes with an opinion pool."""

    def __init__(self, pool: Pool, kinds: Sequence[OutputKind]) -> None:
        super().__init__(kinds)
        self.pool = pool

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, present: Tensor) -> Fused:
        """Pool the members' beliefs; see `Fusion.forward`."""
        logits = torch.stack([self._logits(member, output) for member, output in enumerate(outputs)])
        present = present & _is_usable(logits).t()
        weights = renormalise(weights, present)
        return Fused(self.pool(logits, weights).exp(), weights, measure_disagreement(logits, weights), present)

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's probabilities, float32 [rows, classes]; NaN in a row that is not finite."""
        return self._logits(member, output).softmax(-1)

    def _logits(self, member: int, output: Tensor) -> Tensor:
        """Turn an output into float32 logits; a negative probability becomes NaN, so it counts as not finite."""
        output = output.float()
        return output if self.kinds[member] == "logits" else output.log().clamp_min(MIN_LOG_PROBABILITY)


class ConcatenationFusion(Fusion):
    """Fuses embeddings by putting them side by side."""

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, present: Tensor) -> Fused:
        """Concatenate the members' embeddings; see `Fusion.forward`."""
        embeddings = [output.float() for output in outputs]
        present = present & torch.stack([_is_usable(embedding) for embedding in embeddings], dim=-1)
        weights = renormalise(weights, present)
        disagreement = weights.new_full(weights.shape[:1], torch.nan)
        return Fused(concatenation(embeddings, weights), weights, disagreement, present)

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's embedding as it is, float32 [rows, features of the member]."""
        return output.float()


def _is_usable(output: Tensor) -> Tensor:
    """Say which rows of float32 [..., features] hold only finite numbers: bool [...]. A NaN compares as false."""
    return output.abs().amax(-1).le(MAX_MAGNITUDE)

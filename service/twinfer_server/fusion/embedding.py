"""The way to make one embedding out of several."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import InvalidEnsemble
from ..spec import find_file
from .fusion import Fused, Fusion
from .weights import TINY


def measure_length(embedding: Tensor) -> Tensor:
    """Give the length of each float [..., features], float64 [...], at least the smallest normal fp32.

    In double: the squares of large and of small features leave fp32's range.
    """
    length: Tensor = torch.linalg.vector_norm(embedding, dim=-1, dtype=torch.float64)
    return length.clamp_min(TINY)


def concatenation(embeddings: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Put the members' unit vectors side by side, each scaled by the root of its weight.

    embeddings: one float32 [rows, features of the member] per member.
    weights: float32 [rows, members]; 0 for an absent member; each row sums to 1, or is all 0.
    Returns float32 [rows, sum of the members' features], of unit length; an absent member's part is 0, and so is a zero
    vector's, which has no direction (the row is then shorter than 1).
    The cosine of two rows with the same weights is the weighted mean of the members' cosines; where the weights differ,
    member m's cosine counts sqrt(w_m w'_m).
    Source: Gönen & Alpaydın 2011, "Multiple kernel learning algorithms" (a weighted sum of kernels is the kernel of the
    concatenated feature maps, each scaled by the root of its weight).
    """
    lengths = torch.stack([measure_length(embedding) for embedding in embeddings], dim=-1)
    scales = (weights.sqrt() / lengths).float().t().unsqueeze(-1)
    absent = weights.t().unsqueeze(-1).logical_not()
    parts = [
        (embedding * scale).masked_fill(is_absent, 0.0)
        for embedding, scale, is_absent in zip(embeddings, scales.unbind(), absent.unbind(), strict=True)
    ]
    return torch.cat(parts, dim=-1)


class ConcatenationFusion(Fusion):
    """Fuses embeddings by putting them side by side, and, with a projection, taking them into another space: W x + b."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, voters: Sequence[int], projection: Mapping[str, Tensor] | None = None) -> None:
        """Take `projection`, if there is one: `weight` float32 [out, in] and `bias` float32 [out], or no bias."""
        super().__init__(voters)
        self.register_buffer("weight", projection["weight"] if projection else None)
        self.register_buffer("bias", projection.get("bias") if projection else None)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Concatenate the members' embeddings; see `Fusion.forward`."""
        votes = self.hear(outputs, weights, samples)
        prediction = concatenation(votes.values, votes.shares)
        if self.weight is not None:
            prediction = nn.functional.linear(prediction, self.weight, self.bias)
        return self.conclude(votes, weights.shape[1], prediction)

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's embedding as it is, float32 [rows, features of the member]."""
        return output.float()


def read_projection(folder: Path | None, name: str | None, features: int) -> dict[str, Tensor] | None:
    """Read a projection from `features` features, float32, from a file of the folder; raises InvalidEnsemble."""
    if name is None:
        return None
    if folder is None:
        raise InvalidEnsemble("fusion.projection: found without the folder that it is a file of; allowed: with it")
    try:
        tensors = load(find_file(folder, name).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidEnsemble(f"fusion.projection: {error}") from None
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
    weight, bias = shapes.get("weight", []), shapes.get("bias")
    if set(shapes) - {"weight", "bias"} or len(weight) != 2 or weight[1] != features or bias not in (None, weight[:1]):
        raise InvalidEnsemble(
            f"fusion.projection: {name} has {shapes}; allowed: weight [out, {features}], for the members' {features} features, "
            "and bias [out] or none"
        )
    return {key: tensor.float() for key, tensor in tensors.items()}

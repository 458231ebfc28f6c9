"""Fusing tensors of one shape by their mean, and embeddings by putting them side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import InvalidEnsemble, outline
from ..spec import find_file
from .fusion import TINY, Fusion


def mean_tensor(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Average the members' tensors, element by element.

    tensors: one float32 [requests, *shape] per member; weights as `Fusion.fuse` has them.
    Returns float32 [requests, *shape]: sum_m w_m x_m; 0 where all weights are 0.
    """
    shares = weights.t().reshape(len(tensors), len(weights), *[1] * (tensors[0].ndim - 1))
    return (torch.stack(list(tensors)) * shares).masked_fill(shares.logical_not(), 0.0).sum(0)


def measure_length(embedding: Tensor) -> Tensor:
    """Return the length of each float [..., features], float64 [...], at least the smallest normal fp32.

    In double: the squares of large and of small features leave fp32's range.
    """
    length: Tensor = torch.linalg.vector_norm(embedding, dim=-1, dtype=torch.float64)
    return length.clamp_min(TINY)


def concatenation(embeddings: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Put the members' unit vectors side by side, each scaled by the root of its weight.

    embeddings: one float32 [requests, features of the member] per member; weights as `Fusion.fuse` has them.
    Returns float32 [requests, sum of the members' features], of unit length; an absent member's part is 0, and so is a zero
    vector's, which has no direction (the whole is then shorter than 1).
    The cosine of two results with the same weights is the weighted mean of the members' cosines; where the weights differ,
    member m's cosine counts sqrt(w_m w'_m).
    Source: Gönen & Alpaydın 2011, "Multiple kernel learning algorithms" (a weighted sum of kernels is the kernel of the
    concatenated feature maps, each scaled by the root of its weight).
    """
    lengths = torch.stack([measure_length(embedding) for embedding in embeddings], dim=-1)
    scales = (weights.sqrt() / lengths).float().t().unsqueeze(-1)
    absent = weights.t().unsqueeze(-1).logical_not()
    scaled = [embedding * scale for embedding, scale in zip(embeddings, scales, strict=True)]
    return torch.cat([part.masked_fill(absent[member], 0.0) for member, part in enumerate(scaled)], dim=-1)


class TensorFusion(Fusion):
    """Fuses tensors of one shape by their mean."""

    def fuse(self, values: Sequence[Tensor], weights: Tensor, counts: Tensor) -> Tensor:
        """Average the members' tensors; see `Fusion.fuse`."""
        return mean_tensor(values, weights)


class ConcatenationFusion(Fusion):
    """Fuses embeddings by putting them side by side, and, with a projection, taking them into another space: W x + b."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, fused_members: Sequence[int], projection: Mapping[str, Tensor] | None = None) -> None:
        """Take `projection`, if there is one: `weight` float32 [out, in] and `bias` float32 [out], or no bias."""
        super().__init__(fused_members)
        self.register_buffer("weight", projection["weight"] if projection else None)
        self.register_buffer("bias", projection.get("bias") if projection else None)

    def fuse(self, values: Sequence[Tensor], weights: Tensor, counts: Tensor) -> Tensor:
        """Concatenate the members' embeddings; see `Fusion.fuse`."""
        fused = concatenation(values, weights)
        return fused if self.weight is None else nn.functional.linear(fused, self.weight, self.bias)


def read_projection(folder: Path | None, name: str, features: int) -> dict[str, Tensor]:
    """Read a projection from `features` features, float32, from a file of the folder; raises InvalidEnsemble."""
    if folder is None:
        raise InvalidEnsemble("fusion.projection: found without the folder that it is a file of; allowed: with it")
    try:
        tensors = load(find_file(folder, name).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidEnsemble(f"fusion.projection: {outline(error)}") from None
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
    weight, bias = shapes.get("weight", []), shapes.get("bias")
    if set(shapes) - {"weight", "bias"} or len(weight) != 2 or weight[1] != features or bias not in (None, weight[:1]):
        allowed = f"weight [out, {features}], for the members' {features} features, and bias [out] or none"
        raise InvalidEnsemble(f"fusion.projection: {name} has {shapes}; allowed: {allowed}")
    return {key: tensor.float() for key, tensor in tensors.items()}

"""How alike one member's embedding is to each of another's: image-text match, and classification by texts."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .embedding import measure_length
from .fusion import Fused, Fusion

Activation = Literal["softmax", "sigmoid"]


def measure_cosines(query: Tensor, compared: Tensor) -> Tensor:
    """Give the cosine of each row's query with everything that it is compared with.

    query: float32 [rows, features].
    compared: float32 [rows, compared, features], or [compared, features] that every row is compared with.
    Returns float32 [rows, compared], -1 to 1; 0 where either is a zero vector.
    """
    query, compared = _unit(query), _unit(compared)
    if compared.ndim == 2:
        return functional.linear(query, compared).clamp(-1.0, 1.0)
    return torch.matmul(compared, query.unsqueeze(-1)).squeeze(-1).clamp(-1.0, 1.0)


def match(cosines: Tensor, counts: Tensor, scale: float, bias: float, activation: Activation) -> Tensor:
    """Turn cosines into probabilities, over those that a row has.

    cosines: float32 [rows, compared].
    counts: int [rows]; how many a row has, the first so many.
    Returns float32 [rows, compared], 0 beyond a row's count. With softmax a row's sum to 1: one of all that were compared fits
    (Radford et al. 2021, "Learning transferable visual models from natural language supervision"); with sigmoid each has its own
    probability to fit (Zhai et al. 2023, "Sigmoid loss for language image pre-training"). The logits are scale * cosine + bias.
    """
    beyond = torch.arange(cosines.shape[1], device=cosines.device) >= counts.unsqueeze(-1)
    logits = scale * cosines + bias
    if activation == "softmax":
        probabilities = logits.masked_fill(beyond, torch.finfo(logits.dtype).min).softmax(-1)
    else:
        probabilities = logits.sigmoid()
    return probabilities.masked_fill(beyond, 0.0)


class SimilarityFusion(Fusion):
    """Compares the query member's embedding with the other member's, or with texts that were embedded beforehand."""

    texts: Tensor | None

    def __init__(
        self, query: int, other: int, *, scale: float, bias: float, activation: Activation, texts: Tensor | None = None
    ) -> None:  # fmt: skip
        """Take the two members' indexes; `texts`, float32 [texts, features], are compared where a row brings nothing of its own."""
        super().__init__(sorted((query, other)), (query, other) if texts is None else (query,))
        self.query, self.other = query, other
        self.scale, self.bias, self.activation = scale, bias, activation
        self.register_buffer("texts", texts)

    def read(self, member: int, output: Tensor, count: Tensor) -> Tensor:
        """Give float32 [rows, samples, features], 0 beyond a row's samples."""
        values = output.float().reshape(len(output), -1, output.shape[-1])
        beyond = torch.arange(values.shape[1], device=values.device) >= count.unsqueeze(-1)
        return values.masked_fill(beyond.unsqueeze(-1), 0.0)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> Fused:
        """Compare the members' embeddings; see `Fusion.forward`.

        Gives as many places as the flight's richest row, or the cached texts, have.
        """
        votes = self.hear(outputs, weights, samples)
        counts = dict(zip(self.voters, votes.counts.unbind(-1), strict=True))
        values = dict(zip(self.voters, votes.values, strict=True))
        query, count = values[self.query][:, 0], counts[self.other]
        cosines = measure_cosines(query, values[self.other])
        if self.texts is not None:
            places = max(cosines.shape[1], len(self.texts))
            cached = measure_cosines(query, self.texts)
            cosines, cached = (functional.pad(one, (0, places - one.shape[1])) for one in (cosines, cached))
            cosines = torch.where((count > 0).unsqueeze(-1), cosines, cached)
            count = count.masked_fill(count == 0, len(self.texts))
        count = count * (counts[self.query] > 0)
        beyond = torch.arange(cosines.shape[1], device=cosines.device) >= count.unsqueeze(-1)
        probabilities = match(cosines, count, self.scale, self.bias, self.activation)
        prediction = torch.stack([cosines, probabilities], dim=-1).masked_fill(beyond.unsqueeze(-1), 0.0)
        return self.conclude(votes, weights.shape[1], prediction)

    def needed_by(self, members: Collection[int]) -> frozenset[int]:
        """Say without whom there is no answer: the other member, too, where the row brings what it is to look at."""
        return self.needs | ({self.other} & set(members))

    def count_places(self, samples: Mapping[int, int]) -> int:
        """Give how many a row compares, which has so many samples for each member: its own, or else the cached texts."""
        return samples.get(self.other, 0) or (0 if self.texts is None else len(self.texts))

    def belief(self, member: int, output: Tensor) -> Tensor:
        """Give the member's embedding as it is, float32 [rows, features]."""
        return output.float()


def _unit(vectors: Tensor) -> Tensor:
    return vectors * measure_length(vectors).reciprocal().float().unsqueeze(-1)

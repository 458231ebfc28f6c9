"""How alike one member's embedding is to each of another's: image-text match, and classification by texts."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .fusion import Fusion, FusionResult
from .tensors import measure_length

Activation = Literal["softmax", "sigmoid"]


def measure_cosines(query: Tensor, compared: Tensor) -> Tensor:
    """Return the cosine of each request's query with everything that it is compared with.

    query: float32 [requests, features].
    compared: float32 [requests, compared, features], or [compared, features] that every request is compared with.
    Returns float32 [requests, compared], -1 to 1; 0 where either is a zero vector.
    """
    query, compared = _unit(query), _unit(compared)
    if compared.ndim == 2:
        return functional.linear(query, compared).clamp(-1.0, 1.0)
    return torch.matmul(compared, query.unsqueeze(-1)).squeeze(-1).clamp(-1.0, 1.0)


def match(cosines: Tensor, counts: Tensor, scale: float, bias: float, activation: Activation) -> Tensor:
    """Turn cosines into probabilities, over those that a request has.

    cosines: float32 [requests, compared].
    counts: int [requests]; how many a request has, the first so many.
    Returns float32 [requests, compared], 0 beyond a request's count; the logits are scale * cosine + bias. With softmax a request's
    sum to 1: one of all that were compared fits (Radford et al. 2021, "Learning transferable visual models from natural language
    supervision"); with sigmoid each has its own probability to fit
    (Zhai et al. 2023, "Sigmoid loss for language image pre-training").
    """
    beyond, logits = _is_beyond(cosines, counts), scale * cosines + bias
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
        """Take the two members' indexes; `texts`, float32 [texts, features], are for requests that bring nothing to compare."""
        super().__init__(sorted((query, other)), (query, other) if texts is None else (query,))
        self.query, self.other = query, other
        self.scale, self.bias, self.activation = scale, bias, activation
        self.register_buffer("texts", texts)

    def forward(self, outputs: Sequence[Tensor], weights: Tensor, samples: Tensor) -> FusionResult:
        """Compare the members' embeddings; see `Fusion.forward`.

        The prediction is as long as the richest request of the batch, or the cached texts, need.
        """
        inputs = self.gather_inputs(outputs, weights, samples)
        counts = dict(zip(self.fused_members, inputs.counts.unbind(-1), strict=True))
        values = dict(zip(self.fused_members, inputs.values, strict=True))
        query, count = values[self.query][:, 0], counts[self.other]
        cosines = measure_cosines(query, values[self.other])
        if self.texts is not None:
            length = max(cosines.shape[1], len(self.texts))
            cached = measure_cosines(query, self.texts)
            cosines, cached = (functional.pad(one, (0, length - one.shape[1])) for one in (cosines, cached))
            cosines = torch.where((count > 0).unsqueeze(-1), cosines, cached)
            count = count.masked_fill(count == 0, len(self.texts))
        count = count * (counts[self.query] > 0)
        probabilities = match(cosines, count, self.scale, self.bias, self.activation)
        prediction = torch.stack([cosines, probabilities], dim=-1).masked_fill(_is_beyond(cosines, count).unsqueeze(-1), 0.0)
        return self.make_result(inputs, weights.shape[1], prediction)

    def member_input(self, member: int, output: Tensor, count: Tensor) -> Tensor:
        """Return float32 [requests, samples, features], 0 beyond a request's samples."""
        values = output.float().reshape(len(output), -1, output.shape[-1])
        return values.masked_fill(_is_beyond(values, count).unsqueeze(-1), 0.0)

    def needed_by(self, members: Collection[int]) -> frozenset[int]:
        """Return the members without which there is no answer: the other one, too, where the request has input for it."""
        return self.needs | ({self.other} & set(members))

    def prediction_length(self, samples: Mapping[int, int]) -> int:
        """Return how many a request with so many samples by member compares: its own, or else the cached texts."""
        return samples.get(self.other, 0) or (0 if self.texts is None else len(self.texts))


def _unit(vectors: Tensor) -> Tensor:
    return vectors * measure_length(vectors).reciprocal().float().unsqueeze(-1)


def _is_beyond(values: Tensor, counts: Tensor) -> Tensor:
    """Return which of [requests, n, ...] lie beyond each request's first `counts`, int [requests]: bool [requests, n]."""
    return torch.arange(values.shape[1], device=values.device) >= counts.unsqueeze(-1)

"""How alike one member's embedding is to each of another's: image-text match, and classification by texts."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .fusion import Fusion
from .tensors import measure_length


def measure_cosines(query: Tensor, compared: Tensor) -> Tensor:
    """Return the cosine of each request's query with everything that it is compared with.

    query: float32 [requests, features].
    compared: float32 [requests, compared, features], or [compared, features] that every request is compared with.
    Returns float32 [requests, compared], -1 to 1; 0 where either is a zero vector.
    """
    query, compared = (one * measure_length(one).reciprocal().float().unsqueeze(-1) for one in (query, compared))
    if compared.ndim == 2:
        return functional.linear(query, compared).clamp(-1.0, 1.0)
    return torch.matmul(compared, query.unsqueeze(-1)).squeeze(-1).clamp(-1.0, 1.0)


class SimilarityFusion(Fusion):
    """Compares the query member's embedding with the other member's, or with texts that were embedded beforehand.

    A probability is made of scale * cosine + bias. With softmax a request's sum to 1: one of all that were compared fits (Radford
    et al. 2021, "Learning transferable visual models from natural language supervision"); with sigmoid each has its own probability
    to fit (Zhai et al. 2023, "Sigmoid loss for language image pre-training").
    """

    texts: Tensor | None

    def __init__(
        self, query: int, other: int, *, scale: float, bias: float, is_softmax: bool, texts: Tensor | None
    ) -> None:  # fmt: skip
        """Take the two members' indexes; `texts`, float32 [texts, features], are for requests that bring nothing to compare."""
        super().__init__(sorted((query, other)), (query, other) if texts is None else (query,))
        self.query, self.other = query, other
        self.scale, self.bias, self.is_softmax = scale, bias, is_softmax
        self.register_buffer("texts", texts)

    def read_output(self, output: Tensor, count: Tensor) -> Tensor:
        """Return float32 [requests, samples, features], 0 beyond a request's samples."""
        values = output.float().reshape(len(output), -1, output.shape[-1])
        return values.masked_fill(_is_beyond(values, count).unsqueeze(-1), 0.0)

    def fuse(self, values: Sequence[Tensor], weights: Tensor, counts: Tensor) -> Tensor:
        """Compare the members' embeddings; see `Fusion.fuse`.

        The prediction is as long as the richest request of the batch, or the cached texts, need.
        """
        at, beside = self.fused_members.index(self.query), self.fused_members.index(self.other)
        query, count = values[at][:, 0], counts[:, beside]
        cosines = measure_cosines(query, values[beside])
        if self.texts is not None:
            length = max(cosines.shape[1], len(self.texts))
            cached = measure_cosines(query, self.texts)
            cosines, cached = (functional.pad(one, (0, length - one.shape[1])) for one in (cosines, cached))
            cosines = torch.where((count > 0).unsqueeze(-1), cosines, cached)
            count = count.masked_fill(count == 0, len(self.texts))
        beyond = _is_beyond(cosines, count * (counts[:, at] > 0))
        logits = self.scale * cosines + self.bias
        lowest = torch.finfo(logits.dtype).min
        probabilities = logits.masked_fill(beyond, lowest).softmax(-1) if self.is_softmax else logits.sigmoid()
        return torch.stack([cosines, probabilities], dim=-1).masked_fill(beyond.unsqueeze(-1), 0.0)

    def needed_by(self, members: Collection[int]) -> frozenset[int]:
        """Return the members without which there is no answer: the other one, too, where the request has input for it."""
        return self.needs | ({self.other} & set(members))

    def prediction_length(self, samples: Mapping[int, int]) -> int:
        """Return how many a request with so many samples by member compares: its own, or else the cached texts."""
        return samples.get(self.other, 0) or (0 if self.texts is None else len(self.texts))


def _is_beyond(values: Tensor, counts: Tensor) -> Tensor:
    """Return which of [requests, n, ...] lie beyond each request's first `counts`, int [requests]: bool [requests, n]."""
    return torch.arange(values.shape[1], device=values.device) >= counts.unsqueeze(-1)

"""Pooling: from a model's features, one for every token or patch, to one vector per sample, and what that goes through."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import InvalidEnsemble, quote
from ..spec import Sentences, Step
from .source import Source

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Softplus", "Mish")
"""Classes of torch.nn that a Dense module may apply, with their defaults."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How features become one vector: by each of `methods`, one result behind the other, and then by `steps`.

    A method is "cls", "mean", "max", "last", "mean_sqrt" or "weighted_mean" of the features, "pooler" for the model's own, or
    "tower" for CLIP's kind.
    """

    methods: tuple[str, ...]
    steps: nn.Sequential


class Normalize(nn.Module):
    """Brings vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return float32 [samples, features]."""
        return nn.functional.normalize(vectors, dim=-1)


class Cut(nn.Module):
    """Keeps the first numbers of vectors."""

    def __init__(self, size: int) -> None:
        """Keep `size` numbers."""
        super().__init__()
        self.size = size

    def forward(self, vectors: Tensor) -> Tensor:
        """Return float32 [samples, size]."""
        return vectors[:, : self.size]


def embed(model: Any, inputs: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """Compute a model's features and pool them: float32 [samples, features]; padding, where the mask is 0, does not count."""
    if pooling.methods == ("tower",):
        compute = model.get_image_features if "pixel_values" in inputs else model.get_text_features
        pooled = compute(**inputs).pooler_output
    elif pooling.methods == ("pooler",):
        pooled = model(**inputs).pooler_output
    else:
        features = model(**inputs).last_hidden_state
        pooled = torch.cat([pool(features, inputs.get("attention_mask"), method) for method in pooling.methods], dim=-1)
    vectors: Tensor = pooling.steps(pooled)
    return vectors


def pool(features: Tensor, mask: Tensor | None, method: str) -> Tensor:
    """Pool float32 [samples, tokens, features] to [samples, features].

    mask: int64 [samples, tokens], 1 token, 0 padding behind them; None: no padding.
    """
    if method == "cls":
        return features[:, 0]
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.int64, device=features.device)
    if method == "last":
        return features[torch.arange(len(features), device=features.device), mask.sum(1) - 1]
    if method == "max":
        return features.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    weights = mask.unsqueeze(-1).to(features.dtype)
    if method == "weighted_mean":
        weights = weights.cumsum(1) * weights
    counts = weights.sum(1).clamp(min=1e-9)
    return (features * weights).sum(1) / (counts.sqrt() if method == "mean_sqrt" else counts)


def find_pooling(source: Source, sentences: Sentences | None, model: nn.Module) -> Pooling:
    """Return how a model's features are pooled: as the member says, or else as the directory does; raises InvalidEnsemble.

    A directory says it by the files of sentence-transformers, or by a model of two towers, one of which the member's input picks.
    """
    steps = [_make_step(source, step) for step in sentences.steps] if sentences else []
    if sentences and sentences.truncate_dim:
        steps.append(Cut(sentences.truncate_dim))
    if source.spec.pooling is not None:
        return Pooling((source.spec.pooling,), nn.Sequential(*steps))
    if sentences and sentences.pooling:
        return Pooling(sentences.pooling, nn.Sequential(*steps))
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return Pooling(("tower",), nn.Sequential())
    raise InvalidEnsemble(
        f"{source.key}.pooling: found nothing, and {quote(source.spec.model)} does not say; allowed: cls, mean, max, last, pooler"
    )


def _make_step(source: Source, step: Step) -> nn.Module:
    """Make a module of sentence-transformers behind the pooling, with its weights; raises InvalidEnsemble."""
    if step.kind == "Normalize":
        return Normalize()
    facts, file = step.facts, f"{step.folder.name}/config.json"
    name = str(facts.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not name.startswith("torch.nn.") or name.rpartition(".")[2] not in ACTIVATIONS:
        found = f"whose {file} says activation_function {quote(name)}"
        raise source.refuse(found, f"{', '.join(ACTIVATIONS)} of torch.nn")
    sizes = [facts.get(key, 0) for key in ("in_features", "out_features")]
    if 0 in sizes:
        raise source.refuse(f"whose {file} lacks in_features or out_features", "both")
    with source.reading(f"whose weights in {step.folder.name} do not fit its config.json", "what sentence-transformers has saved"):
        weights = _read_weights(source, step.folder)
        names = {"linear.weight", "linear.bias"} if facts.get("bias", True) else {"linear.weight"}
        if weights.keys() != names or list(weights["linear.weight"].shape) != sizes[::-1]:
            raise ValueError(f"found { ({key: list(value.shape) for key, value in weights.items()}) }")
        linear = nn.Linear(int(sizes[0]), int(sizes[1]), bias="linear.bias" in names)
        linear.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    return nn.Sequential(linear, getattr(nn, name.rpartition(".")[2])())


def _read_weights(source: Source, folder: Path) -> dict[str, Tensor]:
    """Read a module's weights; a pickle has to be trusted."""
    if (folder / WEIGHTS).is_file():
        return load((folder / WEIGHTS).read_bytes())
    content = (folder / PICKLE).read_bytes()
    source.trust.admit_bytes(f"{source.key}.model", folder / PICKLE, content)
    weights: dict[str, Tensor] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    return weights

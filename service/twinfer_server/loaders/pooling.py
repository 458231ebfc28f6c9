"""Pooling: from a model's features, one for every token or patch, to one vector per sample."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidEnsemble, quote
from .source import Source

METHODS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "lasttoken": "last",
}
"""What sentence-transformers calls our methods where it does not call them as we do."""
STEPS = ("Transformer", "Pooling", "Normalize")
"""The modules of sentence-transformers that are served, in this order."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a vector is made, and whether it is brought to length 1.

    `method` is "cls", "mean", "max" or "last" of the features, "pooler" for the model's own, or "tower" for CLIP's kind.
    """

    method: str
    is_normalised: bool = False


def embed(model: Any, inputs: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """Compute a model's features and pool them: float32 [samples, features]; padding, where the mask is 0, does not count."""
    if pooling.method == "tower":
        compute = model.get_image_features if "pixel_values" in inputs else model.get_text_features
        pooled = compute(**inputs).pooler_output
    elif pooling.method == "pooler":
        pooled = model(**inputs).pooler_output
    else:
        pooled = pool(model(**inputs).last_hidden_state, inputs.get("attention_mask"), pooling.method)
    return nn.functional.normalize(pooled, dim=-1) if pooling.is_normalised else pooled


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
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def find_pooling(source: Source, directory: Path, model: nn.Module) -> Pooling:
    """Return how a model's features are pooled: as the member says, or else as the directory does; raises InvalidEnsemble.

    A directory says it by the files of sentence-transformers, or by a model of two towers, one of which the member's input picks.
    """
    try:
        said, is_normalised = _read_sentence_transformer(directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise source.refuse(f"whose sentence-transformers files cannot be followed ({error})", f"the modules {STEPS}") from error
    method = source.spec.pooling or said
    if method is not None:
        return Pooling(method, is_normalised)
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return Pooling("tower")
    raise InvalidEnsemble(
        f"{source.key}.pooling: found nothing, and {quote(source.spec.model)} does not say; allowed: cls, mean, max, last, pooler"
    )


def _read_sentence_transformer(directory: Path) -> tuple[str | None, bool]:
    """Read `modules.json` and the pooling's `config.json`: the method, None where there is none, and whether to normalise."""
    if not (directory / "modules.json").is_file():
        return None, False
    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    steps = [str(module["type"]).rpartition(".")[2] for module in modules]
    if steps not in (list(STEPS), list(STEPS[:2])):
        raise ValueError(f"modules.json: found {steps}")
    facts: Mapping[str, Any] = json.loads((directory / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    said = facts.get("pooling_mode") or [key for key, is_on in facts.items() if key.startswith("pooling_mode_") and is_on]
    methods = [METHODS.get(method, method) for method in ([said] if isinstance(said, str) else said)]
    if len(methods) != 1 or methods[0] not in METHODS.values():
        raise ValueError(f"{modules[1]['path']}/config.json: found the pooling {methods}; allowed: one of cls, mean, max, last")
    return methods[0], steps[-1] == "Normalize"

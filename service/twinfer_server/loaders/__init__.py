"""Loaders: from what a member's `model` names to a model that computes, picked by its suffix or prefix."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..errors import InvalidEnsemble, quote
from ..spec import MemberSpec
from ..trust import Trust
from .huggingface import load_huggingface
from .model import LoadedModel, SharedStorages, list_tensors
from .onnx import load_onnx
from .programs import load_pt2, load_torchscript
from .python import load_python
from .safetensors import load_safetensors
from .source import Source

LOADERS: Mapping[str, Callable[[Source], LoadedModel]] = {
    ".pt2": load_pt2,
    ".pt": load_torchscript,
    ".ts": load_torchscript,
    ".safetensors": load_safetensors,
    ".onnx": load_onnx,
    "python:": load_python,
    "hf:": load_huggingface,
}
"""By what a model's source ends with (a suffix), or begins with (a prefix, which ends with a colon)."""


def load(spec: MemberSpec, folder: Path, device: torch.device, trust: Trust, key: str) -> LoadedModel:
    """Load a member's model onto `device`.

    `key` is the member's path in the ensemble's file ("members.vision"); errors begin with it. Raises UntrustedCode for a
    program that the operator does not trust, and InvalidEnsemble for the rest.
    """
    source = Source(key, spec, folder, device, trust)
    for mark, loader in LOADERS.items():
        if spec.model.startswith(mark) if mark.endswith(":") else spec.model.endswith(mark):
            if spec.architecture is not None and loader is not load_safetensors:
                raise source.refuse("which only weights need", "the key beside a model that ends in .safetensors", "architecture")
            return loader(source)
    allowed = ", ".join(f"{mark}..." if mark.endswith(":") else f"...{mark}" for mark in LOADERS)
    raise InvalidEnsemble(f"{key}.model: no loader for {quote(spec.model)}; allowed: {allowed}")


__all__ = ["LOADERS", "LoadedModel", "SharedStorages", "list_tensors", "load"]

"""The loaders: one file each, found by the model's suffix or prefix in one table."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..errors import InvalidEnsemble, quote
from ..trust import Trust
from .model import LoadedModel
from .pt2 import load_pt2
from .python import load_python

LOADERS: Mapping[str, Callable[[str, Path, torch.device, Trust, str], LoadedModel]] = {
    ".pt2": load_pt2,
    "python:": load_python,
}
"""By what a model's source ends with (a suffix), or begins with (a prefix, which ends with a colon)."""


def load(source: str, folder: Path, device: torch.device, trust: Trust, key: str) -> LoadedModel:
    """Load the model that `source` names onto `device`.

    `key` is the path of the source's key in the ensemble's file ("members.vision.model"); errors begin with it. Raises
    UntrustedCode for a program that the operator does not trust, and InvalidEnsemble for all else.
    """
    for mark, loader in LOADERS.items():
        if source.startswith(mark) if mark.endswith(":") else source.endswith(mark):
            return loader(source, folder, device, trust, key)
    allowed = ", ".join(f"{mark}..." if mark.endswith(":") else f"...{mark}" for mark in LOADERS)
    raise InvalidEnsemble(f"{key}: no loader for {quote(source)}; allowed: {allowed}")


__all__ = ["LOADERS", "LoadedModel", "load"]

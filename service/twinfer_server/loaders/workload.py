"""What a module of Python code has to compute, as a digest: whether measured times of it can still hold."""

import hashlib
import sys
from pathlib import Path

from torch import nn

VERSIONED = {"torch"}
"""Packages whose version says which code they have, to those who keep times."""


def hash_workload(model: nn.Module) -> str:
    """Hash what a module's time hangs upon: its layers, its tensors' shapes, and the code that it is made of.

    The code is every imported file of the packages, or the file, in which its layers' classes are. The weights' values are no part
    of it, nor is what the code itself reads. Gives "" where a class is in no file, or a layer shows itself with an address.
    """
    homes, layers = {type(layer).__module__ for layer in model.modules()}, repr(model)
    if " at 0x" in layers or not all(_find_file(home) for home in homes):
        return ""
    packages = {home.partition(".")[0] for home in homes} - VERSIONED
    digest = hashlib.sha256(layers.encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    for name in sorted(sys.modules):
        path = _find_file(name) if name.partition(".")[0] in packages else None
        if path is not None:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _find_file(module: str) -> Path | None:
    """Find the file with the code of an imported module."""
    origin = getattr(getattr(sys.modules.get(module), "__spec__", None), "origin", None)
    return Path(origin) if origin is not None and origin.endswith(".py") and Path(origin).is_file() else None

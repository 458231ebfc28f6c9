"""`.safetensors` files: weights, which are data, for an architecture that the ensemble's file names beside them.

`architecture = "python:file.py:build"` is a program and needs to be trusted; `architecture = "timm:resnet18"` is not, and downloads
nothing.
"""

import re

from safetensors.torch import load_model
from torch import nn

from ..errors import InvalidEnsemble
from .model import LoadedModel, count_bytes, list_tensors
from .python import make_python
from .source import Source, hash_file

ALLOWED = '"python:file.py:attribute" (or python:module:attribute), or "timm:NAME"'


def load_safetensors(source: Source) -> LoadedModel:
    """Make the architecture, put the file's weights into it, all of them, and move it to the device; raises InvalidEnsemble.

    The digest is of the weights; empty for a Python architecture, whose program no digest can speak for.
    """
    architecture = source.spec.architecture
    if architecture is None:
        raise InvalidEnsemble(f"{source.key}.architecture: found nothing; allowed beside weights: {ALLOWED}")
    path = source.find_file()
    is_python = architecture.startswith("python:")
    if not is_python and not architecture.startswith("timm:"):
        raise source.refuse("which names none", ALLOWED, "architecture")
    module = make_python(source, architecture, "architecture") if is_python else _make_timm(source, architecture)
    if not isinstance(module, nn.Module):
        raise source.refuse(f"which gives {type(module).__name__}", "what gives an nn.Module", "architecture")
    with source.holding([path]):
        with source.reading(f"which does not fit {architecture}", "weights of that architecture"):
            load_model(module, path)  # strict; a tensor that several parameters share is in the file once
        digest = "" if is_python else hash_file(path)
    module = module.to(source.device).float().eval().requires_grad_(False)
    return LoadedModel(module, "safetensors", count_bytes(list_tensors(module)), digest)


def _make_timm(source: Source, architecture: str) -> nn.Module:
    name = architecture.removeprefix("timm:")
    if not re.fullmatch(r"[\w.]+", name):  # timm downloads what "hf-hub:..." names, and reads any folder for "local-dir:..."
        raise source.refuse("which is no name of timm's own", "timm:NAME", "architecture")
    timm = source.import_extra("timm", "timm")
    with source.reading(f"which timm {timm.__version__} cannot make", "timm:NAME", "architecture"):
        module: nn.Module = timm.create_model(name, pretrained=False)
    return module

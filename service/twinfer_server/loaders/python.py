"""Python: `python:module:attribute`, or `python:file.py:attribute` with a file of the folder.

The attribute is an `nn.Module`, or a factory: anything else that can be called without arguments (a class of modules is
one) and gives the model, an `nn.Module` or any callable on tensors. Modules are moved to the device and put into
`eval()`; another callable has to look after its device itself.
"""

import hashlib
import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType

from torch import nn

from ..errors import quote
from .arguments import cast_floats, find_own_dtype
from .model import LoadedModel, count_bytes, list_tensors
from .source import Source


def load_python(source: Source) -> LoadedModel:
    """Import a module and take the model from it; raises UntrustedCode before anything runs, and InvalidEnsemble."""
    model = make_python(source, source.spec.model, "model")
    if not callable(model):
        raise source.refuse(f"which gives {quote(type(model).__name__)}", "an nn.Module, or another callable on tensors")
    if not isinstance(model, nn.Module):
        return LoadedModel(model, "python", 0)
    tensors = list_tensors(model)
    dtype, is_alone = find_own_dtype(tensors)
    adapters = cast_floats(source, dtype) if is_alone else ()
    return LoadedModel(model, "python", count_bytes(tensors), adapters=adapters, dtype=dtype)


def make_python(source: Source, text: str, key: str) -> object:
    """Return what `text`, of the member's `key`, names: a module, on the device and in evaluation mode, or what a factory gives.

    Raises UntrustedCode before anything runs, and InvalidEnsemble.
    """
    source.trust.admit_module(f"{source.key}.{key}", text)
    _, _, rest = text.partition(":")
    home, _, attribute = rest.rpartition(":")
    if not home or not attribute:
        raise source.refuse("which names no attribute", "python:module:attribute, or python:file.py:attribute", key)
    path = source.find_file(home, key) if home.endswith(".py") else None
    with source.reading("which gives no model", "an nn.Module, or a callable without arguments that gives one", key):
        module = importlib.import_module(home) if path is None else _import_file(path)
        found = attrgetter(attribute)(module)
        model = found if isinstance(found, nn.Module) else found()
        return model.to(source.device).eval().requires_grad_(False) if isinstance(model, nn.Module) else model


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that no installed module of the same name stands in for it."""
    name = f"twinfer_member_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look a class's module up by its name
    spec.loader.exec_module(module)
    return module

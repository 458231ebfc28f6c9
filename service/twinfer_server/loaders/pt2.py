"""Exported programs: `.pt2` files as `torch.export.save` writes them."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from ..errors import InvalidEnsemble, quote
from ..spec import find_file
from ..trust import Trust
from .model import LoadedModel, count_bytes


def load_pt2(source: str, folder: Path, device: torch.device, trust: Trust, key: str) -> LoadedModel:
    """Load an exported program from a file of the folder, wherever it was exported, onto `device`.

    Raises UntrustedCode before anything in the file is looked at, and InvalidEnsemble.
    """
    try:
        path = find_file(folder, source)
        content = path.read_bytes()  # read once: what is hashed is what is loaded
    except (OSError, ValueError) as error:
        raise InvalidEnsemble(f"{key}: {error}") from None
    digest = trust.admit_bytes(key, path, content)
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):  # else torch logs a traceback before it gives up
            raise ValueError("it is no archive")
        program = move_to_device_pass(torch.export.load(io.BytesIO(content)), device)
    except Exception as error:  # torch raises whatever the archive makes it stumble over
        raise InvalidEnsemble(
            f"{key}: found {quote(source)}, which torch {torch.__version__} cannot read ({error}); "
            "allowed: a program saved by torch.export.save"
        ) from error
    _refuse_training(program, key, source)
    module = program.module(check_guards=False)  # keeps the mode it was exported in; its .eval() only raises
    module.requires_grad_(False)
    # `forward` goes past the checks of the inputs' shapes, which are symbolic algebra in Python and cost more than a small model.
    return LoadedModel(module.forward, "pt2", count_bytes(_walk_tensors(program)), digest, checked=module)


def _refuse_training(program: ExportedProgram, key: str, source: str) -> None:
    """Refuse a program that was exported in training mode: its dropout and statistics are on, and mix rows."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            schema = getattr(node.target, "_schema", None)
            for position, argument in enumerate(schema.arguments if schema else ()):
                value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
                if argument.name in ("train", "training") and value is True:
                    raise InvalidEnsemble(
                        f"{key}: found {quote(source)}, exported in training mode ({node.target} is training); "
                        "allowed: a model exported after model.eval()"
                    )


def _walk_tensors(program: ExportedProgram) -> Iterator[torch.Tensor]:
    yield from program.state_dict.values()
    yield from (value for value in program.constants.values() if isinstance(value, torch.Tensor))

"""`.pt2` files: exported programs, as `torch.export.save` writes them, or compiled packages, which have the same suffix."""

import io
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from .compiled import COMPILED_FOLDER, load_compiled
from .model import LoadedModel, count_bytes
from .source import Source, has_entry, outline

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def load_pt2(source: Source) -> LoadedModel:
    """Load an exported program, wherever it was exported, onto the device, or a package that was compiled for it.

    Raises UntrustedCode before anything in the file is looked at, and InvalidEnsemble.
    """
    content, digest = source.read_program()
    if has_entry(content, COMPILED_FOLDER):
        return load_compiled(source, content, digest)
    from torch.export.passes import move_to_device_pass  # here, for the compiled packages that do without torch.export

    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):  # else torch logs a traceback before it gives up
            raise ValueError("it is no archive")
        program = move_to_device_pass(torch.export.load(io.BytesIO(content)), source.device)
    except Exception as error:  # torch raises whatever the archive makes it stumble over
        raise source.refuse(
            f"which torch {torch.__version__} cannot read ({outline(error)})", "a program saved by torch.export.save"
        ) from error
    _refuse_training(program, source)
    module = program.module(check_guards=False)  # keeps the mode it was exported in; its .eval() only raises
    module.requires_grad_(False)
    # `forward` goes past the checks of the inputs' shapes, which are symbolic algebra in Python and cost more than a small model.
    return LoadedModel(module.forward, "pt2", count_bytes(_walk_tensors(program)), digest, checked=module)


def _refuse_training(program: "ExportedProgram", source: Source) -> None:
    """Refuse a program that was exported in training mode: its dropout and statistics are on, and mix rows."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            schema = getattr(node.target, "_schema", None)
            for position, argument in enumerate(schema.arguments if schema else ()):
                value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
                if argument.name in ("train", "training") and value is True:
                    raise source.refuse(
                        f"exported in training mode ({node.target} is training)", "a model exported after model.eval()"
                    )


def _walk_tensors(program: "ExportedProgram") -> Iterator[torch.Tensor]:
    yield from program.state_dict.values()
    yield from (value for value in program.constants.values() if isinstance(value, torch.Tensor))

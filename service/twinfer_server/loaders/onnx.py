"""ONNX: `.onnx` files, which are data, computed by ONNX Runtime on the CPU, whatever the device of the other members.

On a GPU the member's inputs come to the host and its outputs go back, and the launch thread waits for that; no CUDA graph holds it.
ONNX Runtime's CUDA provider, which would compute on a stream of its own, is not supported yet.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import quote
from .model import LoadedModel
from .source import TEXT, Source, hash_file

TOKEN_TYPES = TEXT[2]
"""0 wherever a text stands alone, and so in a member that does not bring it."""


class OnnxModel:
    """A session that takes tensors by position and returns its outputs by name; safe to call from several threads.

    An output that is no tensor of numbers (strings, maps, sequences) is None: it keeps its position, and cannot be selected.
    """

    def __init__(self, session: Any, names: Sequence[str], lacks_types: bool, device: torch.device) -> None:
        """Take over a session; its arguments are for the graph's inputs of these names, outputs go to `device`."""
        self._session = session
        self._device = device
        self._names = names
        self._lacks_types = lacks_types
        types = {node.name: str(node.type) for node in session.get_outputs()}
        self._outputs: dict[str, Tensor | None] = dict.fromkeys(types)
        self._fetched = [name for name, kind in types.items() if kind.startswith("tensor(") and kind != "tensor(string)"]

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor | None]:
        """Compute, and return what the graph gives."""
        arrays = {name: argument.cpu().numpy() for name, argument in zip(self._names, arguments, strict=True)}
        if self._lacks_types:
            arrays[TOKEN_TYPES] = np.zeros_like(arrays.get(TEXT[0], next(iter(arrays.values()))))
        outputs = self._session.run(self._fetched, arrays) if self._fetched else []  # asked for none it would give all
        found = {name: torch.from_numpy(array).to(self._device) for name, array in zip(self._fetched, outputs, strict=True)}
        return self._outputs | found


def load_onnx(source: Source) -> LoadedModel:
    """Open a session on a file of the folder, with as many threads as torch has here; raises InvalidEnsemble.

    Its size is that of the file; tensors that the file keeps in others beside it are read but not counted.
    """
    onnxruntime = source.import_extra("onnxruntime", "onnx")
    path = source.find_file()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters is raised
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other members want the cores
    with source.reading(f"which ONNX Runtime {onnxruntime.__version__} cannot read", "an ONNX model"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = [node.name for node in session.get_inputs()]
    names = _name_arguments(source, inputs)
    model = OnnxModel(session, names, TOKEN_TYPES in inputs and TOKEN_TYPES not in names, source.device)
    return LoadedModel(model, "onnx", path.stat().st_size, hash_file(path), is_capturable=False)


def _name_arguments(source: Source, names: Sequence[str]) -> list[str]:
    """Find the graph's input, one of `names`, for each of the member's tensors; raises InvalidEnsemble where they do not match.

    A text's tensors go by their usual names where the graph has those, in any order; everything else by position.
    """
    wanted: list[str] = []
    for spec in source.spec.input.values():
        count = 1 + spec.mask + spec.token_types if spec.kind == "text" else 1
        is_usual = spec.kind == "text" and TEXT[0] in names and TEXT[0] not in wanted
        wanted += TEXT[:count] if is_usual else [""] * count
    left = [name for name in names if name not in wanted]
    if TOKEN_TYPES in left and len(left) > wanted.count(""):
        left.remove(TOKEN_TYPES)
    if len(left) != wanted.count("") or not {*wanted} <= {"", *names}:
        raise source.refuse(
            f"whose inputs are {quote(', '.join(names))}, and the member gives {len(wanted)} tensors",
            f"a tensor for each input; those of a text are called {', '.join(TEXT)}",
        )
    rest = iter(left)
    return [name or next(rest) for name in wanted]

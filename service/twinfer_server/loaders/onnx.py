"""ONNX: `.onnx` files, which are data, computed by ONNX Runtime on the CPU, whatever the device of the other members.

On a GPU the member's inputs come to the host and its outputs go back, and the launch thread waits for that; no CUDA graph holds it.
ONNX Runtime's CUDA provider, which would compute on a stream of its own, is not supported yet.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidEnsemble, quote
from .arguments import Declared, make_adapters
from .model import LoadedModel
from .onnx_graph import DTYPES, OnnxGraph, find_data, parse_graph, read_names
from .source import TEXT, Source, hash_files

TOKEN_TYPES = TEXT[2]
"""0 wherever a text stands alone, and so in a member that does not bring it."""


class OnnxModel:
    """A session that takes tensors by position and returns its outputs by name; safe to call from several threads.

    An output that is no tensor of numbers (strings, maps, sequences) is None: it keeps its position, and cannot be selected.
    """

    def __init__(self, onnxruntime: Any, session: Any, names: Sequence[str], types: Declared | None, device: torch.device) -> None:
        """Take over a session; its arguments are for the graph's inputs of these names, outputs go to `device`.

        `types` are the token types that the graph takes and the member does not give.
        """
        self._session = session
        self._values = onnxruntime.OrtValue
        self._device = device
        self._names = names
        self._types = types
        kinds = {node.name: str(node.type) for node in session.get_outputs()}
        self._outputs: dict[str, Tensor | None] = dict.fromkeys(kinds)
        self._fetched = [name for name, kind in kinds.items() if find_dtype(kind) is not None]
        self._is_plain = "tensor(bfloat16)" not in [node.type for node in (*session.get_inputs(), *session.get_outputs())]

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor | None]:
        """Compute, and return what the graph gives."""
        tensors = {name: argument.cpu() for name, argument in zip(self._names, arguments, strict=True)}
        if self._types is not None:
            ids = tensors.get(TEXT[0], next(iter(tensors.values())))
            tensors[TOKEN_TYPES] = torch.zeros_like(ids, dtype=self._types.dtype)
        outputs = self._run(tensors) if self._fetched else []  # asked for none it would give all
        return self._outputs | {name: output.to(self._device) for name, output in zip(self._fetched, outputs, strict=True)}

    def _run(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        if self._is_plain:
            arrays = self._session.run(self._fetched, {name: tensor.numpy() for name, tensor in tensors.items()})
            return [torch.from_numpy(array) for array in arrays]
        values = {name: self._wrap(tensor) for name, tensor in tensors.items()}
        return [self._unwrap(value) for value in self._session.run_with_ort_values(self._fetched, values)]

    def _wrap(self, tensor: Tensor) -> Any:
        """Hand a tensor to ONNX Runtime; NumPy has no bfloat16."""
        return (
            self._values.from_dlpack(tensor) if tensor.dtype is torch.bfloat16 else self._values.ortvalue_from_numpy(tensor.numpy())
        )

    def _unwrap(self, value: Any) -> Tensor:
        found: Tensor = (
            torch.utils.dlpack.from_dlpack(value) if value.data_type() == "tensor(bfloat16)" else torch.from_numpy(value.numpy())
        )
        return found


def find_dtype(kind: str) -> torch.dtype | None:
    """Return the dtype of what ONNX Runtime calls "tensor(float)"; None for what is no tensor of numbers."""
    return DTYPES.get(kind.removeprefix("tensor(").removesuffix(")"))


def load_onnx(source: Source) -> LoadedModel:
    """Open a session on a file of the folder, with as many threads as torch has here; raises InvalidEnsemble.

    Digest and size are those of the file and of all files that it keeps tensors in.
    """
    onnxruntime = source.import_extra("onnxruntime", "onnx")
    path, cannot_read = source.folder / source.spec.model, f"which ONNX Runtime {onnxruntime.__version__} cannot read"
    with source.reading(cannot_read, "an ONNX model"):
        content = source.find_file().read_bytes()
    graph, files = _read_graph(source, content, cannot_read)
    with source.holding([source.find_file(), *files]):
        # From the bytes that are hashed; a graph in several files from its path, for ONNX Runtime looks for the others beside that.
        session = _open_session(source, onnxruntime, path if files else content, cannot_read)
        digest = hash_files(source.folder.resolve(), [source.find_file(), *files]) if files else hashlib.sha256(content).hexdigest()
    inputs = {node.name: node for node in session.get_inputs()}
    names = _name_arguments(source, list(inputs))
    declared = [_declare(source, inputs[name]) for name in names]
    types = _declare(source, inputs[TOKEN_TYPES]) if TOKEN_TYPES in inputs and TOKEN_TYPES not in names else None
    fixed = {one.shape[0] for one in declared if one.shape} - {None}
    return LoadedModel(
        OnnxModel(onnxruntime, session, names, types, source.device), "onnx", sum(file.stat().st_size for file in (path, *files)),
        digest, is_capturable=False, adapters=make_adapters(source, declared), dtype=graph.dtype,
        fixed_samples=next(iter(fixed), None),
    )  # fmt: skip


def _read_graph(source: Source, content: bytes, found: str) -> tuple[OnnxGraph, list[Path]]:
    """Parse the file, and find the files that it keeps tensors in; raises InvalidEnsemble for one that the folder has not."""
    onnx = source.import_extra("onnx", "onnx")
    with source.reading(found, "an ONNX model"):
        graph = parse_graph(onnx, content)
    try:
        return graph, [find_data(source.folder, source.spec.model, location) for location in graph.locations]
    except ValueError as error:
        raise InvalidEnsemble(f"{source.key}.model: {quote(source.spec.model)} keeps tensors in another file: {error}") from None


def _open_session(source: Source, onnxruntime: Any, model: Path | bytes, found: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters is raised
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other members want the cores
    with source.reading(found, "an ONNX model"):
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=False)
        read_names(session)
    return session


def _declare(source: Source, node: Any) -> Declared:
    """Return what the graph says of one of its inputs; raises InvalidEnsemble for what is no tensor of numbers."""
    dtype = find_dtype(node.type)
    if dtype is None:
        raise source.refuse(f"whose input {quote(node.name)} is {node.type}", "inputs that are tensors of numbers")
    # ONNX Runtime says the same of a number alone and of a shape that is not known.
    shape = tuple(size if isinstance(size, int) else None for size in node.shape) or None
    return Declared(node.name, dtype, shape)


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

"""ONNX graphs as files: the bytes of one, and the other files that it keeps tensors in."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..errors import quote
from ..spec import find_file
from .arguments import find_float_dtype

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime from 1.31 on reports to its makers unless this stands before it is imported, and keeps files in HOME for that."""

DTYPES: dict[str, torch.dtype] = {
    "float": torch.float32, "double": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16, "bool": torch.bool,
    **{name: getattr(torch, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}  # fmt: skip
"""By what ONNX Runtime calls them in "tensor(float)"."""
FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
"""By ONNX's own numbers."""
SAME = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that leave the numbers as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class OnnxGraph:
    """What a graph says of itself, beside what a session on it tells.

    `locations` are the files that it keeps tensors in, by their paths from its own folder, each once; `dtype` is that of its
    floats, the coarsest where it has several; `last` names the operator behind each output, by the output's name.
    """

    locations: tuple[str, ...]
    dtype: torch.dtype
    last: dict[str, str]


def parse_graph(onnx: Any, content: bytes) -> OnnxGraph:
    """Read what a file of the `onnx` package's format says; raises what protobuf does."""
    model = onnx.ModelProto.FromString(content)
    tensors = list(_walk_tensors(model))
    locations = dict.fromkeys(
        # What is no UTF-8 comes as bytes; no file is found by what that becomes.
        entry.value if isinstance(entry.value, str) else entry.value.decode(errors="replace")
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    )
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = [tensor.data_type for tensor in tensors if tensor.dims]  # numbers alone are often float32 in graphs of another dtype
    types = weights or [one.type.tensor_type.elem_type for one in model.graph.input]
    dtype = find_float_dtype([FLOATS[number] for number in types if number in FLOATS])
    return OnnxGraph(tuple(sorted(locations)), dtype, {one.name: _find_last(makers, one.name) for one in model.graph.output})


def read_names(session: Any) -> list[tuple[str, str, list[object]]]:
    """Return name, type and shape of all that a session takes and gives; raises UnicodeDecodeError where one is no text."""
    return [(node.name, node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())]


def _walk_tensors(message: Any) -> Iterator[Any]:
    """Yield the tensors of a message, however deep: initialisers, sparse ones, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _walk_tensors(part)


def check_location(location: str) -> PurePosixPath:
    """Return the path from the graph's folder to a file that it keeps tensors in; raises ValueError where ONNX allows none."""
    path = PurePosixPath(location)
    if not path.name or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
        raise ValueError(
            f"found the path {quote(location)}; allowed: one from the graph's own folder, without '..' and backslashes"
        )
    return path


def find_data(folder: Path, model: str, location: str) -> Path:
    """Return the path of a file that the graph `model` of the folder keeps tensors in; raises ValueError where that is none."""
    return find_file(folder, str(Path(model).parent / check_location(location)))


def _find_last(makers: dict[str, Any], name: str) -> str:
    """Return the operator that an output's numbers come from; "" where the graph does not compute them."""
    seen: set[str] = set()
    while name in makers and name not in seen:
        seen.add(name)
        node = makers[name]
        if node.op_type not in SAME or not node.input:
            return str(node.op_type)
        name = node.input[0]
    return ""

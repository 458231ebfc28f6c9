"""ONNX graphs of the tests: small, seeded, in whatever dtype and layout a converter writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.models import as_any
from twinfer_server.types import Array

FLOAT = TensorProto.FLOAT


def describe_value(name: str, kind: int, shape: Sequence[object]) -> Any:
    """Give the value of a graph."""
    return helper.make_tensor_value_info(name, kind, as_any(shape))


def save_nodes(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()
) -> Path:
    """Write a graph of these parts."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(weights))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def make_weights(seed: int, *shape: int) -> Array:
    """Make seeded weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save_linear(
    path: Path, seed: int = 0, kind: int = FLOAT, rows: str | int = "rows", columns: Sequence[str | int] = (8,), classes: int = 3,
    last: str = "Identity", names: tuple[str, str] = ("x", "logits"),
) -> Path:  # fmt: skip
    """Write logits = last(x @ w), float32 inside, for an input of this kind of numbers, [rows, *columns]."""
    size = columns[-1] if isinstance(columns[-1], int) else 8
    weights = numpy_helper.from_array(make_weights(seed, size, classes), "w")
    nodes = [
        helper.make_node("Cast", [names[0]], ["float"], to=FLOAT),
        helper.make_node("MatMul", ["float", "w"], ["product"]),
        helper.make_node(last, ["product"], [names[1]]),
    ]
    inputs = [describe_value(names[0], kind, [rows, *columns])]
    return save_nodes(path, nodes, inputs, [describe_value(names[1], FLOAT, [rows, *columns[:-1], classes])], [weights])


def move_weights(path: Path, location: str) -> Path:
    """Move a graph's weights into another file, at `location` from its folder, as torch.onnx.export does."""
    onnx.save_model(
        onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=True, location=location, size_threshold=0
    )
    return path


def point_weights(path: Path, location: str) -> Path:
    """Say that a graph's weights are at `location`, whatever is there."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def save_pooled(path: Path, kind: int, is_last: bool, classes: int = 3) -> Path:
    """Write a classifier of pictures of 16 x 12 pixels, of this kind of numbers, channels first or last: of their mean colours."""
    array = helper.tensor_dtype_to_np_dtype(kind)
    dtype = array if np.dtype(array).kind == "f" or kind == TensorProto.BFLOAT16 else np.float32
    inside = kind if dtype is array else FLOAT
    weights = numpy_helper.from_array(make_weights(1, 3, classes).astype(dtype), "w")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["same"], to=inside),
        helper.make_node("ReduceMean", ["same"], ["mean"], axes=[1, 2] if is_last else [2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
    ]
    shape = ["n", 16, 12, 3] if is_last else ["n", 3, 16, 12]
    return save_nodes(
        path, nodes, [describe_value("pixels", kind, shape)], [describe_value("logits", inside, ["n", classes])], [weights]
    )


def save_text(path: Path, kind: int, vocabulary: int, takes_types: bool = False, tokens: str | int = "tokens") -> Path:
    """Write a classifier of texts, whose ids, mask and types are of this kind of numbers: of the sum of their embeddings."""
    names = ["input_ids", "attention_mask", *["token_type_ids"] * takes_types]
    weights = [
        numpy_helper.from_array(make_weights(2, vocabulary, 8), "table"),
        numpy_helper.from_array(make_weights(3, 8, 3), "w"),
        numpy_helper.from_array(np.array([2]), "two"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["wide"]),
        helper.make_node("Mul", ["embedded", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "w"], ["logits"]),
    ]
    inputs = [describe_value(name, kind, ["n", tokens]) for name in names]
    return save_nodes(path, nodes, inputs, [describe_value("logits", FLOAT, ["n", 3])], weights)

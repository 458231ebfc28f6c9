"""ONNX files: what a graph, and the tokenizer beside it, say about a member."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..errors import outline, quote
from ..loaders.arguments import name_dtype
from ..loaders.onnx import find_dtype
from ..loaders.onnx_graph import OnnxGraph, check_location, parse_graph, read_names
from ..loaders.source import TEXT
from ..spec import PREFIX, TensorInputSpec, complete_table
from .lines import Asked
from .member import CannotDraft, MemberDraft, plain_name

DTYPES: tuple[str, ...] = get_args(TensorInputSpec.model_fields["dtype"].annotation)
OUTPUT_OF_TASK = {"classification": "logits", "multi_label": "logits", "embedding": "embedding", "tensor": "tensor"}
PROBABILITIES = {("classification", "Softmax"), ("multi_label", "Softmax"), ("multi_label", "Sigmoid")}
"""The tasks and last operators of graphs that give probabilities."""
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


def draft_onnx(name: str, path: Path, task: str) -> MemberDraft:
    """Draft a member from an ONNX file, the files that it keeps tensors in, and the tokenizer beside it; raises CannotDraft."""
    if not path.is_file():
        raise CannotDraft(f"member {name}: no such file: {path}")
    if task not in OUTPUT_OF_TASK:
        allowed = ", ".join(OUTPUT_OF_TASK)
        raise CannotDraft(f"member {name}: an .onnx file does not say its task; allowed: --task with one of {allowed}")
    graph, session = _open(name, path)
    data = _find_data(name, path, graph)
    inputs = {node.name: node for node in session.get_inputs()}
    if not inputs:
        raise CannotDraft(f"member {name}: the graph takes no input; allowed: one or several")
    for node in inputs.values():
        _check_samples(name, node)
    tables, files = _draft_text(name, path, inputs)
    text = TEXT if tables else ()
    for node in inputs.values():
        if node.name not in text:
            tables[plain_name(node.name, "_", "input", tables)] = _draft_tensor(name, node)
    target = f"{name}/{path.name}" if data or files else f"{name}.onnx"
    files |= {f"{name}/{location}": source for location, source in data.items()}
    output = _draft_output(name, session.get_outputs(), task, graph)
    return MemberDraft(name, path, target, target, task, tables, output=output, files=files)


def _open(name: str, path: Path) -> tuple[OnnxGraph, Any]:
    """Read the graph and open a session on it; raises CannotDraft."""
    try:
        onnx, onnxruntime = (importlib.import_module(module) for module in ("onnx", "onnxruntime"))
    except ImportError as error:
        raise CannotDraft(f"member {name}: {error.name} cannot be imported ({error}); pip install 'twinfer[onnx]'") from None
    found = f"member {name}: found {quote(path)}, which ONNX Runtime {onnxruntime.__version__} cannot read"
    try:
        content = path.read_bytes()
        graph = parse_graph(onnx, content)
        _find_data(name, path, graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model = path if graph.locations else content
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=False)
        read_names(session)
    except CannotDraft:
        raise
    except Exception as error:  # of classes of its own
        raise CannotDraft(f"{found} ({outline(error)}); allowed: an ONNX model") from error
    return graph, session


def _find_data(name: str, path: Path, graph: OnnxGraph) -> dict[str, Path]:
    """Return the files that the graph keeps tensors in, by their paths from its folder; raises CannotDraft."""
    found: dict[str, Path] = {}
    for location in graph.locations:
        try:
            place = check_location(location)
        except ValueError as error:
            raise CannotDraft(f"member {name}: {quote(path.name)} keeps tensors in another file: {error}") from None
        if not (path.parent / place).is_file():
            raise CannotDraft(f"member {name}: {quote(path.name)} keeps tensors in {quote(location)}, which is not beside it")
        found[str(place)] = path.parent / place
    return found


def _describe(node: Any) -> str:
    return f"{quote(node.name)} is {node.type} {node.shape}"


def _check_samples(name: str, node: Any) -> None:
    """Refuse an input that does not take any number of samples; raises CannotDraft."""
    if find_dtype(node.type) is None:
        raise CannotDraft(f"member {name}: its input {_describe(node)}; allowed: a tensor of numbers")
    if not node.shape:
        raise CannotDraft(f"member {name}: its input {_describe(node)}, without a dimension for samples; allowed: [samples, ...]")
    if isinstance(node.shape[0], int):
        dynamic = "export it with a first dimension of any size (dynamic_shapes or dynamic_axes)"
        raise CannotDraft(
            f"member {name}: its input {_describe(node)}, for exactly {node.shape[0]}; allowed: any number: {dynamic}"
        )


def _draft_tensor(name: str, node: Any) -> dict[str, object]:
    dtype = find_dtype(node.type)
    # What a request cannot bring is cast on the way.
    found = "float32" if dtype is not None and name_dtype(dtype) == "bfloat16" else name_dtype(dtype) if dtype else ""
    if found not in DTYPES:
        raise CannotDraft(f"member {name}: its input {_describe(node)}; allowed: {', '.join(DTYPES)}, bfloat16")
    shape: object = list(node.shape[1:])
    if not all(isinstance(size, int) and size > 0 for size in node.shape[1:]):
        shape = Asked(f"one sample's, of {', '.join(str(size or 'any') for size in node.shape[1:])}; the graph takes several")
    return {"kind": "tensor", "dtype": found, "shape": shape}


def _draft_text(name: str, path: Path, inputs: Mapping[str, Any]) -> tuple[dict[str, dict[str, object]], dict[str, Path]]:
    """Draft the text of a graph with token ids that has a tokenizer beside it, or above its folder `onnx`; none for others."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    folder = next((folder for folder in folders if (folder / TOKENIZER).is_file()), None)
    if folder is None or TEXT[0] not in inputs:
        return {}, {}
    takes_mask = TEXT[1] in inputs
    if takes_mask and any(isinstance(size, int) for text in TEXT[:2] for size in inputs[text].shape[1:]):
        node = inputs[TEXT[0]]
        raise CannotDraft(f"member {name}: its input {_describe(node)}; allowed: any number of tokens beside {TEXT[1]}")
    files = {f"{name}/{file}": folder / file for file in TOKENIZER_FILES if (folder / file).is_file()}
    table: dict[str, object] = {"kind": "text", "tokenizer": f"{name}/{TOKENIZER}"}
    if (folder / "config.json").is_file():
        table |= _read_text(name, folder.resolve())
    else:
        table["max_tokens"] = Asked("the most tokens that the model takes; there is no config.json that says it")
    if isinstance(length := inputs[TEXT[0]].shape[-1], int):
        table["max_tokens"] = length
    return {"text": table | {"mask": takes_mask, "token_types": takes_mask and TEXT[2] in inputs}}, files


def _read_text(name: str, folder: Path) -> dict[str, object]:
    """Read what the tokenizer's files say, as for a Hugging Face directory; raises CannotDraft."""
    try:
        table = complete_table({"kind": "text"}, f"{PREFIX}{folder.name}", folder.parent)
    except ValueError as error:
        raise CannotDraft(f"member {name}: the tokenizer in {folder} cannot be followed: {error}") from None
    tokenizer = f"{PREFIX}{name}" if str(table["tokenizer"]).startswith(PREFIX) else f"{name}/{TOKENIZER}"
    return {key: value for key, value in table.items() if value != ""} | {"tokenizer": tokenizer}


def _draft_output(name: str, outputs: Sequence[Any], task: str, graph: OnnxGraph) -> dict[str, object]:
    """Find the output that counts; scikit-learn's converters put the best class before what it was found by. Raises CannotDraft."""
    tensors = [node for node in outputs if (dtype := find_dtype(node.type)) is not None and dtype.is_floating_point]
    if task == "tensor":
        tensors = tensors or [node for node in outputs if find_dtype(node.type) is not None]
    else:
        tensors = [node for node in tensors if len(node.shape) in (0, 2)]
    if not tensors:
        found, allowed = (
            ", ".join(map(_describe, outputs)),
            "any tensor of numbers" if task == "tensor" else "floats [samples, any]",
        )
        raise CannotDraft(f"member {name}: its output {found}; allowed for task {task!r}: {allowed}")
    if len(tensors) > 1:
        names = ", ".join(quote(node.name) for node in tensors)
        return {"kind": OUTPUT_OF_TASK[task], "select": Asked(f"the name of an output, one of {names}")}
    node = tensors[0]
    last = graph.last.get(node.name, "")
    if task == "classification" and (last == "Sigmoid" or node.shape[1:] == [1]):
        why = "comes from a sigmoid, one for each class" if last == "Sigmoid" else "is one number for a sample"
        raise CannotDraft(f"member {name}: its output {_describe(node)} and {why}; allowed: --task multi_label, or tensor")
    return {"kind": "probabilities" if (task, last) in PROBABILITIES else OUTPUT_OF_TASK[task], "select": node.name}

"""Drafts of members: what a Hugging Face directory or an ONNX file says about a member, as lines of an ensemble's file."""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..errors import quote
from ..loaders.source import outline
from ..spec import PREFIX, find_output_kind, has_several_labels, name_classes

DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip
TASK_OF_OUTPUT = {"logits": "classification", "detections": "detection", "embedding": "embedding"}
MAX_TEXTS = 16
OUTPUT_OF_TASK = {"classification": "logits", "multi_label": "logits", "embedding": "embedding", "tensor": "tensor"}


class CannotDraft(RuntimeError):
    """A source of which no member can be drafted: says why, and what would do."""


@dataclass(frozen=True, slots=True)
class MemberDraft:
    """A member to be: `source` is copied into the folder as `target`; `inputs` are tables of the file, by input name.

    `fusion` has keys of `[fusion]` that the source knows.
    """

    name: str
    source: Path
    target: str
    model: str
    task: str
    inputs: Mapping[str, Mapping[str, object]]
    labels: tuple[str, ...] = ()
    output: Mapping[str, object] = field(default_factory=dict)
    fusion: Mapping[str, object] = field(default_factory=dict)


def draft_member(name: str, source: str, task: str) -> MemberDraft:
    """Draft a member from `hf:DIR` or `FILE.onnx`; `task` is for a source that does not say it. Raises CannotDraft."""
    if source.startswith(PREFIX):
        return _draft_directory(name, Path(source.removeprefix(PREFIX)))
    if source.endswith(".onnx"):
        return _draft_onnx(name, Path(source), task)
    raise CannotDraft(
        f"member {name}: found {quote(source)}; allowed: hf:DIR or FILE.onnx, which say what they take. For other models copy "
        "ensembles/digits and name your files in it"
    )


def draft_towers(source: str) -> list[MemberDraft] | None:
    """Draft the two towers of a CLIP-like directory, `hf:DIR`, as members that are compared; None for any other source."""
    directory = Path(source.removeprefix(PREFIX))
    if not source.startswith(PREFIX) or not {"text_config", "vision_config"} <= set(_read_config(directory)):
        return None
    model, fusion = f"{PREFIX}{directory.resolve().name}", _read_likeness(directory)
    tables: dict[str, dict[str, object]] = {"image": {"kind": "image"}, "text": {"kind": "text", "max_samples": MAX_TEXTS}}
    target = directory.resolve().name
    return [
        MemberDraft(name, directory, target, model, "similarity", {name: table}, fusion=fusion) for name, table in tables.items()
    ]


def _draft_directory(name: str, directory: Path) -> MemberDraft:
    config = _read_config(directory)
    has_image = (directory / "preprocessor_config.json").is_file()
    has_text = (directory / "tokenizer.json").is_file()
    if has_image == has_text:
        found = "both an image processor and a tokenizer" if has_image else "neither preprocessor_config.json nor tokenizer.json"
        raise CannotDraft(f"member {name}: found {found} in {directory}; allowed: one of them, or a CLIP-like directory by itself")
    kind = "image" if has_image else "text"
    task = TASK_OF_OUTPUT[find_output_kind(config)]
    if task == "classification" and has_several_labels(config):
        task = "multi_label"
    labels = name_classes(config) if task != "embedding" else ()
    return MemberDraft(name, directory, name, f"{PREFIX}{name}", task, {kind: {"kind": kind}}, labels)


def _draft_onnx(name: str, path: Path, task: str) -> MemberDraft:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise CannotDraft(f"member {name}: onnxruntime cannot be imported ({error}); pip install 'twinfer[onnx]'") from None
    if not path.is_file():
        raise CannotDraft(f"member {name}: no such file: {path}")
    if task not in OUTPUT_OF_TASK:
        allowed = ", ".join(OUTPUT_OF_TASK)
        raise CannotDraft(f"member {name}: an .onnx file does not say its task; allowed: --task with one of {allowed}")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own
        found = f"{quote(path)}, which ONNX Runtime {onnxruntime.__version__} cannot read ({outline(error)})"
        raise CannotDraft(f"member {name}: found {found}; allowed: an ONNX model") from error
    inputs = {}
    for node in session.get_inputs():
        shape = node.shape[1:]
        if node.type not in DTYPES or not all(isinstance(size, int) for size in shape):
            found = f"its input {node.name!r} is {node.type} {node.shape}"
            raise CannotDraft(f"member {name}: {found}; allowed: fixed sizes but the first")
        inputs[plain_name(node.name, "_", "input")] = {"kind": "tensor", "dtype": DTYPES[node.type], "shape": list(shape)}
    outputs = session.get_outputs()
    # scikit-learn's converters put the best class before what it was found by.
    best = next((node for node in outputs if DTYPES.get(node.type, "").startswith("float")), outputs[0])
    output = {"kind": OUTPUT_OF_TASK[task], "select": best.name}
    return MemberDraft(name, path, f"{name}.onnx", f"{name}.onnx", task, inputs, output=output)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotDraft(f"{path} cannot be read ({error}); allowed: a directory that save_pretrained has written") from None
    return document


def _read_likeness(directory: Path) -> dict[str, object]:
    """Read how a CLIP-like model turns cosines into probabilities: its weights have the logarithm of the scale, and the bias."""
    found: dict[str, object] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as tensors:
            names: Sequence[str] = list(tensors.keys())
            if "logit_scale" in names:
                found["scale"] = round(math.exp(float(tensors.get_tensor("logit_scale").reshape(-1)[0])), 6)
            if "logit_bias" in names:  # trained with a sigmoid (Zhai et al. 2023), not a softmax
                found |= {"bias": round(float(tensors.get_tensor("logit_bias").reshape(-1)[0]), 6), "activation": "sigmoid"}
    return found


def plain_name(name: str, gap: str, before: str) -> str:
    """Turn any name into one that an ensemble's file may have: `gap` for what it may not, `before` where no letter begins it."""
    plain = "".join(letter if letter.isalnum() else gap for letter in name.lower()).strip(gap)
    return plain if plain[:1].isalpha() else f"{before}{gap}{plain}"

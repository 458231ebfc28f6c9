"""Drafting: what Hugging Face directories and ONNX files say about members, written as an ensemble folder."""

import importlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from safetensors import safe_open

from ..errors import outline, quote
from ..fusion import METHODS
from ..spec import (
    PREFIX,
    SPEC_FILE,
    TensorInputSpec,
    find_model,
    find_output_kind,
    has_several_labels,
    has_tokenizer,
    name_classes,
    read_config,
)

DTYPES: tuple[str, ...] = get_args(TensorInputSpec.model_fields["dtype"].annotation)
TASK_OF_OUTPUT = {"logits": "classification", "detections": "detection", "embedding": "embedding", "tensor": "tensor"}
OUTPUT_OF_TASK = {"classification": "logits", "multi_label": "logits", "embedding": "embedding", "tensor": "tensor"}
METHOD_OF_TASK = {
    "classification": "log_opinion_pool", "multi_label": "log_opinion_pool", "embedding": "concatenation", "similarity": "cosine",
    "detection": "weighted_boxes", "tensor": "weighted_mean",
}  # fmt: skip
MAX_TEXTS = 16
LEFT_OUT = shutil.ignore_patterns(".git*", "onnx", "openvino", "*.h5", "*.msgpack", "*.ot", "*.md", "*.py", "pytorch_model*.bin")
NOTES = {
    "image": "JPEG, PNG, ... or pixels; size, mean and std are read from the model's directory",
    "text": "a text; tokenizer, length and padding are read from the model's directory",
    "tensor": "a ready tensor of this dtype and shape",
}
"""What the file says of an input, by its kind."""


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
    target, fusion = directory.resolve().name, _read_likeness(directory)
    tables: dict[str, dict[str, object]] = {"image": {"kind": "image"}, "text": {"kind": "text", "max_samples": MAX_TEXTS}}
    return [
        MemberDraft(name, directory, target, f"{PREFIX}{target}", "similarity", {name: table}, fusion=fusion)
        for name, table in tables.items()
    ]


def write_folder(folder: Path, drafts: Sequence[MemberDraft], method: str) -> None:
    """Write an ensemble folder of the drafts, fused by `method` ("" for what suits the task); raises CannotDraft."""
    if len({draft.task for draft in drafts}) > 1:
        found = ", ".join(f"{draft.name}: {draft.task}" for draft in drafts)
        raise CannotDraft(f"members: found different tasks ({found}); allowed: one task for all")
    labels = {draft.labels for draft in drafts if draft.labels}
    if len(labels) > 1:
        raise CannotDraft("members: their configurations name different classes, or in another order; allowed: the same")
    task = drafts[0].task
    methods = [name for name, entry in METHODS.items() if task in entry.tasks]
    if method and method not in methods:
        raise CannotDraft(f"--fusion: found {quote(method)}; allowed for task {task!r}: {', '.join(methods)}")
    if folder.exists() and any(folder.iterdir()):
        raise CannotDraft(f"{folder} is there and not empty; allowed: a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for target, source in {draft.target: draft.source for draft in drafts}.items():
        if source.is_dir():
            shutil.copytree(source, folder / target, copy_function=_link, ignore=LEFT_OUT)
        else:
            _link(source, folder / target)
    for names in labels:
        (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    lines = _write_lines(folder, _part_inputs(drafts), method or METHOD_OF_TASK[task], bool(labels))
    (folder / SPEC_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draft_directory(name: str, directory: Path) -> MemberDraft:
    try:
        config, model = read_config(directory), find_model(directory)
    except ValueError as error:
        raise CannotDraft(f"member {name}: {error}") from None
    has_image = (directory / "preprocessor_config.json").is_file()
    has_text = has_tokenizer(model)
    if has_image == has_text:
        found = "both an image processor and a tokenizer" if has_image else "neither preprocessor_config.json nor tokenizer.json"
        raise CannotDraft(f"member {name}: found {found} in {directory}; allowed: one of them, or a CLIP-like directory by itself")
    kind = "image" if has_image else "text"
    task = TASK_OF_OUTPUT[find_output_kind(config)]
    if task == "classification" and has_several_labels(config):
        task = "multi_label"
    labels = name_classes(config) if task not in ("embedding", "tensor") else ()
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
        dtype, shape = _find_dtype(node.type), node.shape[1:]
        if dtype not in DTYPES or not all(isinstance(size, int) for size in shape):
            found = f"its input {node.name!r} is {node.type} {node.shape}"
            raise CannotDraft(f"member {name}: {found}; allowed: fixed sizes but the first")
        inputs[_plain_name(node.name, "_", "input")] = {"kind": "tensor", "dtype": dtype, "shape": list(shape)}
    outputs = session.get_outputs()
    # scikit-learn's converters put the best class before what it was found by.
    best = next((node for node in outputs if _find_dtype(node.type).startswith("float")), outputs[0])
    output = {"kind": OUTPUT_OF_TASK[task], "select": best.name}
    return MemberDraft(name, path, f"{name}.onnx", f"{name}.onnx", task, inputs, output=output)


def _find_dtype(onnx_type: str) -> str:
    """Return what an ensemble's file calls the numbers of "tensor(float)"; whatever has no name there comes back as it is."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


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


def _part_inputs(drafts: Sequence[MemberDraft]) -> list[MemberDraft]:
    """Put the member's name before a tensor's that is another thing to another member: a request has one value of a name."""
    tables = [(name, table) for draft in drafts for name, table in draft.inputs.items()]

    def name_input(draft: MemberDraft, name: str) -> str:
        table = draft.inputs[name]
        is_parted = table["kind"] == "tensor" and any(other == name and found != table for other, found in tables)
        return f"{draft.name}_{name}" if is_parted else name

    return [replace(draft, inputs={name_input(draft, name): table for name, table in draft.inputs.items()}) for draft in drafts]


def _link(source: str | Path, target: str | Path) -> str:
    """Link a file where the file system can, for models are never changed in place; else copy it."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return str(target)


def _write_lines(folder: Path, drafts: Sequence[MemberDraft], method: str, has_labels: bool) -> Iterator[str]:
    yield "# An ensemble of twinfer: every member looks at the same request, and their fusion answers."
    yield f"# Check it with `twinfer validate {folder}`, serve it with `twinfer serve {folder}`."
    yield ""
    yield f'name = "{_plain_name(folder.resolve().name, "-", "ensemble")}"'
    yield "version = 1                  # an integer; raise it when answers may change"
    yield f'task = "{drafts[0].task}"'
    if has_labels:
        yield 'labels = "labels.txt"        # one class a line, in the order of the models\' outputs'
    yield 'policy = "best_effort"       # answer with the members that are there; "require_all" would rather fail'
    for draft in drafts:
        yield ""
        yield f"[members.{draft.name}]"
        yield f'model = "{draft.model}"'
        for name, table in draft.inputs.items():
            yield f"[members.{draft.name}.input.{name}]     # the request's name for this input"
            yield from _write_table(table, {"kind": NOTES[str(table["kind"])], "max_samples": "a list of texts to compare"})
        if draft.output:
            yield f"[members.{draft.name}.output]"
            yield from _write_table(draft.output, {"kind": "what the output means", "select": "which of the outputs"})
    yield ""
    yield "[fusion]                     # docs/fusion.md lists the methods by task; `twinfer fit` learns one from labelled rows"
    notes = {"scale": "cosines times this, as the model was trained", "bias": "plus this", "activation": "one probability for each"}
    yield from _write_table({"method": method} | dict(drafts[0].fusion), notes)
    yield ""
    yield "[batching]"
    yield "max_batch_size = 16          # the most requests that compute together; a lone request never waits for others"


def _write_table(table: Mapping[str, object], notes: Mapping[str, str]) -> Iterator[str]:
    for key, value in table.items():
        text = f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        yield f"{text:<28} # {notes[key]}" if key in notes else text


def _plain_name(name: str, gap: str, before: str) -> str:
    """Turn any name into one that an ensemble's file may have: `gap` for what it may not, `before` where no letter begins it."""
    plain = "".join(letter if letter.isalnum() else gap for letter in name.lower()).strip(gap)
    return plain if plain[:1].isalpha() else f"{before}{gap}{plain}"

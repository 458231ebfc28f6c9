"""Drafting: what Hugging Face directories and ONNX files say about members."""

from pathlib import Path

from ..errors import quote
from ..spec import PREFIX, find_model, find_output_kind, has_several_labels, has_tokenizer, name_classes
from .graph import draft_onnx
from .member import CannotDraft, MemberDraft
from .towers import find_config

TASK_OF_OUTPUT = {"logits": "classification", "detections": "detection", "embedding": "embedding", "tensor": "tensor"}
INPUT_OF_HEAD = {"ForImageClassification": "image", "ForObjectDetection": "image", "ForSequenceClassification": "text"}
"""What is read where a directory has both an image processor and a tokenizer."""


def draft_member(name: str, source: str, task: str) -> MemberDraft:
    """Draft a member from `hf:DIR` or `FILE.onnx`; `task` is for a source that does not say it. Raises CannotDraft."""
    if source.startswith(PREFIX):
        return _draft_directory(name, Path(source.removeprefix(PREFIX)))
    if source.endswith(".onnx"):
        return draft_onnx(name, Path(source), task)
    raise CannotDraft(
        f"member {name}: found {quote(source)}; allowed: hf:DIR or FILE.onnx, which say what they take. For other models copy "
        "ensembles/digits and name your files in it"
    )


def _draft_directory(name: str, directory: Path) -> MemberDraft:
    config = find_config(directory)
    has_image = (directory / "preprocessor_config.json").is_file()
    has_text = has_tokenizer(find_model(directory))
    head = next((kind for end, kind in INPUT_OF_HEAD.items() if str((config.get("architectures") or [""])[0]).endswith(end)), None)
    if has_image == has_text and not (has_image and head):
        found = "both an image processor and a tokenizer" if has_image else "neither preprocessor_config.json nor a tokenizer"
        raise CannotDraft(f"member {name}: found {found} in {directory}; allowed: one of them, or a CLIP-like directory by itself")
    kind = head if has_image and has_text and head else "image" if has_image else "text"
    task = TASK_OF_OUTPUT[find_output_kind(config)]
    if task == "classification" and has_several_labels(config):
        task = "multi_label"
    labels = name_classes(config) if task not in ("embedding", "tensor") else ()
    return MemberDraft(name, directory, name, f"{PREFIX}{name}", task, {kind: {"kind": kind}}, labels)

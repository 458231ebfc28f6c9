"""What a Hugging Face directory says about a member, in the words of an ensemble's file.

Only what the file leaves out is read; what it says counts. Of images all that a table can say comes from the image processor;
of texts the tokenizer, the length, the cut, the padding, the mask and the types come from the tokenizer's files.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import quote
from . import image_processor
from .files import Fault, find_file
from .keys import MOST_LABELS, MOST_LAYERS, read_keys
from .sentences import read_sentences
from .tokenizer import read_text

PREFIX = "hf:"
MULTI_LABEL, SINGLE_LABEL, REGRESSION = "multi_label_classification", "single_label_classification", "regression"
ACTIVATIONS = ("Identity", "Sigmoid", "Softmax")
"""What sentence-transformers applies to a cross-encoder's logits, if it can be served; a single logit has no softmax."""
SIGMOID_DETECTORS = {
    "conditional_detr", "dab-detr", "d_fine", "deformable_detr", "deimv2", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2",
}  # fmt: skip
"""Model types whose detection heads score every class by itself."""
SOFTMAX_DETECTORS = {"detr", "table-transformer", "yolos"}
"""Model types whose detection heads have a last class for "nothing"."""
KIND_OF_HEAD = {"ForImageClassification": "logits", "ForSequenceClassification": "logits", "ForObjectDetection": "detections"}
"""The outputs of architectures that end so."""
KEYS = {
    "image": image_processor.KEYS,
    "text": ("tokenizer", "max_tokens", "truncation_side", "mask", "pad_id", "token_types", "pair", "prompt"),
}
"""What the directory knows of an input of each kind."""


def find_directory(folder: Path, model: str) -> Path:
    """Return the directory that `hf:DIR` names; raises ValueError unless it is inside the folder and has a model."""
    name = Path(model.removeprefix(PREFIX))
    try:
        return find_file(folder, str(name / "modules.json")).parent
    except ValueError:
        return find_file(folder, str(name / "config.json")).parent


def find_model(directory: Path) -> Path:
    """Return the folder with a directory's config.json and weights: sentence-transformers may have another; raises ValueError."""
    sentences = read_sentences(directory)
    return sentences.model if sentences else directory


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json, as the files of sentence-transformers beside it change it; raises ValueError that names file and key."""
    sentences = read_sentences(directory)
    model = sentences.model if sentences else directory
    if (model / "adapter_config.json").is_file():
        raise ValueError(f"adapter_config.json in {quote(model.name)}: found; allowed: none, merge the adapter into the weights")
    config = read_keys(model / "config.json")
    _check_sizes(config)
    problem, problems = config.get("problem_type", SINGLE_LABEL), (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
    if problem not in problems:
        raise ValueError(f"config.json: problem_type: found {quote(problem)}; allowed: {', '.join(problems)}")
    if sentences and sentences.activation:
        config["sentence_transformers"] = {"activation_fn": sentences.activation}
    elif sentences and not sentences.is_cross_encoder:
        config["architectures"] = []  # whatever head there is, its features are what counts
    return config


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes that no model has: to build what a damaged file asks for would not end."""
    parts = [config, *(config[key] for key in ("text_config", "vision_config") if key in config)]
    for key, value in (item for part in parts for item in part.items()):
        most = MOST_LABELS if key == "num_labels" else MOST_LAYERS if "layer" in key else None
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(f"config.json: {key}: found {quote(value)[1:-1]}; allowed: at most {most}")


def find_output_kind(config: Mapping[str, Any]) -> str:
    """Return the output kind of a model with this configuration: its head says it, and without one it is an embedding.

    A head whose numbers nothing is applied to, such as a regressor's, gives a tensor.
    """
    kind = _find_head(config)
    is_number = config.get("problem_type") == REGRESSION or (count_labels(config) == 1 and find_activation(config) == "Identity")
    return "tensor" if kind == "logits" and is_number else kind or "embedding"


def has_classifier(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is that of a classifier or a regressor."""
    return _find_head(config) == "logits"


def _find_head(config: Mapping[str, Any]) -> str | None:
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    return next((kind for head, kind in KIND_OF_HEAD.items() if architecture.endswith(head)), None)


def find_activation(config: Mapping[str, Any]) -> str | None:
    """Return what sentence-transformers applies to a cross-encoder's logits, None where it does not say; raises ValueError."""
    found = (config.get("sentence_transformers") or {}).get("activation_fn") or config.get("sbert_ce_default_activation_function")
    allowed = [name for name in ACTIVATIONS if name != "Softmax" or count_labels(config) > 1]
    if found is None:
        return None
    name = str(found).rpartition(".")[2]
    if name not in allowed or not str(found).startswith("torch.nn."):
        raise ValueError(f"config.json: activation_fn: found {quote(found)}; allowed: {', '.join(allowed)} of torch.nn")
    return name


def count_labels(config: Mapping[str, Any]) -> int:
    """Return how many logits a classifier with this configuration has."""
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else int(config.get("num_labels", 2))


def has_several_labels(config: Mapping[str, Any]) -> bool:
    """Whether a classifier with this configuration gives every label a probability of its own, not one class for a sample."""
    return config.get("problem_type") == MULTI_LABEL or count_labels(config) == 1 or find_activation(config) == "Sigmoid"


def name_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a configuration's classes, one line each, by index; empty where it has none.

    A name that several classes bear (ImageNet's two cranes) gets each one's number behind it.
    """
    found = config.get("id2label")
    if not isinstance(found, dict) or not all(str(key).isdecimal() for key in found):
        return ()
    names = {key: " ".join(str(found[key]).split()) or str(key) for key in sorted(found, key=int)}
    counts = Counter(names.values())
    return tuple(f"{name} ({key})" if counts[name] > 1 else name for key, name in names.items())


def complete_member(member: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Fill in what a member's table leaves out and its directory says; raises ValueError, with what would be right."""
    directory = find_directory(folder, member["model"])
    config = read_config(directory)
    completed = dict(member) | {"output": _complete_output(member.get("output", {}), config)}
    inputs = member.get("input")
    if isinstance(inputs, dict):
        completed["input"] = {name: _complete_input(name, table, directory, config, completed) for name, table in inputs.items()}
    return completed


def complete_table(table: Mapping[str, Any], model: str, folder: Path) -> dict[str, Any]:
    """Return an input's table as a member `model` of the folder, "hf:DIR", would have it; raises ValueError."""
    completed: dict[str, Any] = complete_member({"model": model, "input": {"input": table}}, folder)["input"]["input"]
    return completed


def _complete_output(output: Any, config: Mapping[str, Any]) -> Any:
    if not isinstance(output, dict):
        return output
    found: dict[str, Any] = {"kind": find_output_kind(config)}
    if (found | output)["kind"] == "detections":
        found |= {"select": "pred_boxes", "scores": "logits", "box_format": "cxcywh", "box_units": "relative"}
        model_type = config.get("model_type")
        if model_type in SIGMOID_DETECTORS | SOFTMAX_DETECTORS:
            found["score_kind"] = "softmax" if model_type in SOFTMAX_DETECTORS else "sigmoid"
        elif "score_kind" not in output:
            raise Fault("output.score_kind", f"nothing, and {quote(model_type)} is unknown", "softmax or sigmoid")
    return found | output


def _complete_input(name: str, table: Any, directory: Path, config: Mapping[str, Any], member: Mapping[str, Any]) -> Any:
    kind = table.get("kind") if isinstance(table, dict) else None
    if kind not in KEYS or all(key in table for key in KEYS[kind]):
        return table
    try:
        if kind == "image":
            found = image_processor.read_image(table, directory, config)
        else:
            found = read_text(table, directory, member["model"], uses_head(member, config))
    except ValueError as error:
        raise ValueError(f"input.{name}: {error}") from None
    return found | table


def uses_head(member: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a member's table asks for what a classifier's head gives, rather than for features."""
    output = member.get("output")
    kind = output.get("kind") if isinstance(output, dict) else None
    return kind == "logits" or (kind == "tensor" and member.get("pooling") is None and has_classifier(config))

"""What a Hugging Face directory says about a member, in the words of an ensemble's file.

Only what the file leaves out is read; what it says counts. Of images the size, resampling, mean and std come from the
image processor; of texts the tokenizer, the length, the cut, the padding and the mask come from the tokenizer's files.
"""

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import quote
from .files import Fault, find_file

PREFIX = "hf:"
MULTI_LABEL = "multi_label_classification"
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
SIGMOID_DETECTORS = {
    "conditional_detr", "dab-detr", "d_fine", "deformable_detr", "deimv2", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2",
}  # fmt: skip
"""Model types whose detection heads score every class by itself."""
SOFTMAX_DETECTORS = {"detr", "table-transformer", "yolos"}
"""Model types whose detection heads have a last class for "nothing"."""
KIND_OF_HEAD = {"ForImageClassification": "logits", "ForSequenceClassification": "logits", "ForObjectDetection": "detections"}
"""The outputs of architectures that end so."""
KEYS = {
    "image": ("size", "color", "resize", "scaled_decoding", "mean", "std"),
    "text": ("tokenizer", "max_tokens", "truncation_side", "mask", "pad_id"),
}
"""What the directory knows of an input of each kind."""


def find_directory(folder: Path, model: str) -> Path:
    """Return the directory that `hf:DIR` names; raises ValueError unless it and its config.json are inside the folder."""
    name = model.removeprefix(PREFIX)
    return find_file(folder, str(Path(name) / "config.json")).parent


def find_output_kind(config: Mapping[str, Any]) -> str:
    """Return the output kind of a model with this configuration: its head says it, and without one it is an embedding."""
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    return next((kind for head, kind in KIND_OF_HEAD.items() if architecture.endswith(head)), "embedding")


def has_several_labels(config: Mapping[str, Any]) -> bool:
    """Whether a classifier with this configuration gives every label a logit of its own, rather than one class for a sample."""
    return config.get("problem_type") == MULTI_LABEL


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
    config = read_json(directory / "config.json")
    completed = dict(member) | {"output": _complete_output(member.get("output", {}), config)}
    inputs = member.get("input")
    if isinstance(inputs, dict):
        completed["input"] = {name: _complete_input(name, table, folder, directory, config) for name, table in inputs.items()}
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


def _complete_input(name: str, table: Any, folder: Path, directory: Path, config: Mapping[str, Any]) -> Any:
    kind = table.get("kind") if isinstance(table, dict) else None
    if kind not in KEYS or all(key in table for key in KEYS[kind]):
        return table
    try:
        found = _read_image(table, directory, config) if kind == "image" else _read_text(table, folder, directory, config)
    except ValueError as error:
        raise ValueError(f"input.{name}: {error}") from None
    return found | table


def _read_image(table: Mapping[str, Any], directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the image processor; the geometry only if the table has no size of its own."""
    try:
        # Not read as JSON, for what an older file leaves out only its class knows.
        transformers = importlib.import_module("transformers")
        backends = importlib.import_module("transformers.image_processing_backends")
    except ImportError as error:
        why = f"transformers, which reads the image processor, cannot be imported ({error})"
        raise ValueError(f"{why}; pip install 'twinfer[hf]'") from None
    options = {"backend": "pil", "local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(directory, **options)
    except Exception as error:  # whatever its JSON makes it stumble over
        raise ValueError(f"no image processor in {quote(directory.name)} ({error}); allowed: a preprocessor_config.json") from None
    facts = processor.to_dict()
    found: dict[str, Any] = {"color": "gray" if config.get("num_channels") == 1 else "rgb"}
    if "size" not in table:
        found |= _read_geometry(processor, facts, backends.PilBackend)
    if facts.get("do_flip_channel_order"):
        raise ValueError("the image processor turns RGB into BGR; allowed: RGB")
    # The member's pixels are scaled to 0..1, the processor's by its own factor.
    scale = round(255 * float(facts["rescale_factor"]) if facts.get("do_rescale") else 255.0, 6)
    if facts.get("do_normalize"):
        found["mean"], found["std"] = ([float(value) / scale for value in facts[key]] for key in ("image_mean", "image_std"))
    else:
        found["mean"], found["std"] = [], [1 / scale] * (1 if found["color"] == "gray" else 3)
    found["resize"] = RESAMPLING[int(facts.get("resample", 2))]
    found["scaled_decoding"] = False  # what the library does not do either
    return found


def _read_geometry(processor: Any, facts: Mapping[str, Any], backend: Any) -> dict[str, Any]:
    """Return what says how the processor resizes; raises ValueError where the file's keys cannot say it."""
    size, crop = facts.get("size") or {}, facts.get("crop_size") or {}
    sides = [size["height"], size["width"]] if set(size) == {"height", "width"} else None
    resize_to = size["shortest_edge"] if set(size) == {"shortest_edge"} else sides
    steps = ("_preprocess", "resize", "center_crop", "rescale", "normalize")
    if any(getattr(type(processor), step) is not getattr(backend, step) for step in steps):
        found = f"{type(processor).__name__} has steps of its own"
    elif facts.get("do_pad"):
        found = "the image processor pads"
    elif not facts.get("do_resize"):
        found = "the image processor does not resize"
    elif not facts.get("do_center_crop"):
        if sides:
            return {"size": sides}
        found = f"the image processor resizes to {size}"
    elif set(crop) == {"height", "width"} and resize_to:
        return {"size": [crop["height"], crop["width"]], "fit": "crop", "resize_to": resize_to, "crop_offset": "floor"}
    else:
        found = f"the image processor resizes to {size} and crops to {crop}"
    raise ValueError(f"{found}; allowed: one height and width. Else write size = [height, width] into the ensemble's file")


def _read_text(table: Mapping[str, Any], folder: Path, directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the tokenizer's files; a tokenizer and a length they need not have where the table has its own."""
    path = directory / "tokenizer.json"
    if "tokenizer" not in table and not path.is_file():
        allowed = "what the save_pretrained of an AutoTokenizer writes"
        raise ValueError(f"no tokenizer.json in {quote(directory.name)}; allowed: {allowed}")
    tokenizer = read_json(path, is_optional=True)
    facts = read_json(directory / "tokenizer_config.json", is_optional=True)
    sentences = read_json(directory / "sentence_bert_config.json", is_optional=True)
    if sentences.get("do_lower_case"):
        raise ValueError("sentence_bert_config.json: do_lower_case is true; allowed: false, and a tokenizer that does it")
    config = config | config.get("text_config", {}) if isinstance(config.get("text_config"), dict) else config
    longest = sentences.get("max_seq_length") or facts.get("model_max_length") or config.get("max_position_embeddings")
    if isinstance(longest, int | float) and longest > config.get("max_position_embeddings", longest):
        longest = config["max_position_embeddings"]  # transformers writes 1e30 for "not said"
    if "max_tokens" not in table and not isinstance(longest, int):
        raise ValueError(f"no length in the tokenizer's files (found {longest!r}); allowed: max_tokens in the ensemble's file")
    takes_mask = "attention_mask" in facts.get("model_input_names", ["attention_mask"])
    found: dict[str, Any] = {
        "tokenizer": str(path.relative_to(folder.resolve())),
        "max_tokens": longest,
        "truncation_side": _find_side("truncation", facts, tokenizer),
        "mask": takes_mask and not str(config.get("model_type")).startswith("siglip"),  # trained on padding without a mask
        "pad_id": _find_pad_id(tokenizer, facts.get("pad_token"), config.get("pad_token_id")),
    }
    # Behind a mask no member sees where the padding is.
    if not table.get("mask", found["mask"]) and (side := _find_side("padding", facts, tokenizer)) != "right":
        raise ValueError(f"the tokenizer's padding_side is {quote(side)} for a model without a mask; allowed: 'right'")
    return found


def _find_side(what: str, facts: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """Return the side of the "truncation" or "padding": as the configuration says, else the tokenizer itself, else the right."""
    own = tokenizer.get(what)
    return str(facts.get(f"{what}_side") or (own.get("direction") if isinstance(own, dict) else None) or "right").lower()


def _find_pad_id(tokenizer: Mapping[str, Any], token: object, configured: object) -> int:
    """Return the id of the padding: the tokenizer's own, else the model's, else 0."""
    content = token.get("content") if isinstance(token, dict) else token
    for added in tokenizer.get("added_tokens") or ():
        if added.get("content") == content:
            return int(added["id"])
    return configured if isinstance(configured, int) and configured >= 0 else 0


def read_json(path: Path, *, is_optional: bool = False) -> dict[str, Any]:
    """Read a JSON object, empty where an optional file is missing; raises ValueError."""
    if is_optional and not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path.name}: found {type(document).__name__}; allowed: a JSON object")
    return document

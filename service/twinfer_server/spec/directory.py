"""What a Hugging Face directory says about a member, in the words of an ensemble's file.

Only what the file leaves out is read; what it says counts. Of images all that a table can say comes from the image processor;
of texts the tokenizer, the length, the cut, the padding and the mask come from the tokenizer's files.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import quote
from . import image_processor
from .files import Fault, find_file, read_json

PREFIX = "hf:"
MULTI_LABEL = "multi_label_classification"
SIGMOID_DETECTORS = {
    "conditional_detr", "dab-detr", "d_fine", "deformable_detr", "deimv2", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2",
}  # fmt: skip
"""Model types whose detection heads score every class by itself."""
SOFTMAX_DETECTORS = {"detr", "table-transformer", "yolos"}
"""Model types whose detection heads have a last class for "nothing"."""
KIND_OF_HEAD = {"ForImageClassification": "logits", "ForSequenceClassification": "logits", "ForObjectDetection": "detections"}
"""The outputs of architectures that end so."""
OFFSET_POSITIONS = {
    "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert", "layoutlmv3",
    "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Model types whose first position is the one behind that of the padding, at `pad_token_id`: of 514 they take 512 tokens."""
KEYS = {
    "image": image_processor.KEYS,
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
        found = (
            image_processor.read_image(table, directory, config)
            if kind == "image"
            else _read_text(table, folder, directory, config)
        )
    except ValueError as error:
        raise ValueError(f"input.{name}: {error}") from None
    return found | table


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
    positions = _count_positions(config)
    longest = sentences.get("max_seq_length") or facts.get("model_max_length") or positions
    if isinstance(longest, int | float) and positions is not None and longest > positions:
        longest = positions  # transformers writes 1e30 for "not said"
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


def _count_positions(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model with this configuration has positions for; None where it does not say."""
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id")
    if not isinstance(positions, int):
        return None
    return (
        positions - 1 - (padding if isinstance(padding, int) else 1) if config.get("model_type") in OFFSET_POSITIONS else positions
    )


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

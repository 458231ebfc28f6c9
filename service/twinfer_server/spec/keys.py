"""The keys of a Hugging Face directory's files: which are read, which do not matter, which are refused by name.

docs/hugging-face.md shows these tables; a test compares them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import quote
from .files import read_json

MOST_LAYERS, MOST_LABELS = 1000, 1_000_000
"""More than any model has."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What becomes of a file's keys. The values of those that are `read` are checked; null says nothing and is always allowed.

    `refused` keys may have a value that says nothing (false, 0, or empty), for libraries write these too. Where `has_others`, all
    other keys are the library's, which reads the file as well; else they are refused, for nobody knows what they mean.
    """

    read: Mapping[str, str]
    irrelevant: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    has_others: bool = False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # no NaN


VALUES: Mapping[str, Callable[[object], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "a text": lambda value: isinstance(value, str),
    "a list of texts": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "a text, or a list of texts": lambda value: isinstance(value, str) or VALUES["a list of texts"](value),
    "a text, or an object with one": lambda value: isinstance(value if not isinstance(value, dict) else value.get("content"), str),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "a whole number, at least 1": lambda value: VALUES["a whole number"](value) and value >= 1,  # type: ignore[operator]
    "a number": _is_number,
    "an object": lambda value: isinstance(value, dict),
    "an object of texts": lambda value: isinstance(value, dict) and all(isinstance(one, str | None) for one in value.values()),
    "'right' or 'left'": lambda value: value in ("right", "left"),
}
"""What a value may be, and how that is seen."""

TEXT, FLAG, COUNT, TABLE, TEXTS = "a text", "true or false", "a whole number, at least 1", "an object", "an object of texts"
NOT_RUN = "none, Python in the directory is never run; without it transformers' own classes are served"
FILES: Mapping[str, Keys] = {
    "config.json": Keys(
        {
            "architectures": "a list of texts", "model_type": TEXT, "problem_type": TEXT, "id2label": TABLE,
            "num_labels": COUNT, "pad_token_id": "a whole number", "type_vocab_size": "a whole number",
            "max_position_embeddings": "a whole number", "text_config": TABLE, "vision_config": TABLE,
            "sentence_transformers": TABLE, "sbert_ce_default_activation_function": TEXT,
        },
        frozenset({
            "dtype", "torch_dtype", "label2id", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states",
            "torchscript", "use_cache", "transformers_version",
        }),
        {"auto_map": NOT_RUN, "quantization_config": "weights as they were trained", "pruned_heads": "a model of whole layers"},
        has_others=True,
    ),
    "tokenizer_config.json": Keys(
        {
            "model_max_length": "a number", "model_input_names": "a list of texts", "padding_side": "'right' or 'left'",
            "truncation_side": "'right' or 'left'", "pad_token": "a text, or an object with one", "do_lower_case": FLAG,
            "strip_accents": FLAG, "tokenize_chinese_chars": FLAG, "add_prefix_space": FLAG, "add_bos_token": FLAG,
            "add_eos_token": FLAG, "split_special_tokens": FLAG, "added_tokens_decoder": TABLE, "tokenizer_class": TEXT,
        },
        frozenset({
            "chat_template", "clean_up_tokenization_spaces", "name_or_path", "special_tokens_map_file", "tokenizer_file",
        }),
        {"auto_map": NOT_RUN} | dict.fromkeys(("vocab_file", "merges_file", "spm_file", "gguf_file"), "files of their usual names"),
        has_others=True,
    ),
    "tokenizer.json": Keys({}, has_others=True),
    "special_tokens_map.json": Keys({}, has_others=True),
    "added_tokens.json": Keys({}, has_others=True),
    "sentence_bert_config.json": Keys(
        {
            "max_seq_length": COUNT, "do_lower_case": FLAG, "modality_config": TABLE, "transformer_task": TEXT,
            "module_output_name": TEXT,
        },
        frozenset({"unpad_inputs", "query_length", "document_length", "query_expansion"}),
        dict.fromkeys(
            (
                "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs",
                "processing_kwargs", "tokenizer_name_or_path",
            ),
            "none, and the model's and the tokenizer's own files say it",
        ),
    ),
    "config_sentence_transformers.json": Keys(
        {
            "model_type": TEXT, "prompts": TEXTS, "default_prompt_name": TEXT, "truncate_dim": COUNT, "similarity_fn_name": TEXT,
            "activation_fn": TEXT,
        },
        frozenset({"__version__", "requirements", "keep_in_fp32_modules"}),
    ),
    "a module of modules.json": Keys({"type": TEXT, "path": TEXT}, frozenset({"idx", "name"}), {"kwargs": "none"}),
    "Pooling's config.json": Keys(
        {
            "pooling_mode": "a text, or a list of texts", "pooling_mode_cls_token": FLAG, "pooling_mode_max_tokens": FLAG,
            "pooling_mode_mean_tokens": FLAG, "pooling_mode_mean_sqrt_len_tokens": FLAG, "pooling_mode_weightedmean_tokens": FLAG,
            "pooling_mode_lasttoken": FLAG, "include_prompt": FLAG,
        },
        frozenset({"word_embedding_dimension", "embedding_dimension"}),
    ),
    "Dense's config.json": Keys(
        {
            "in_features": COUNT, "out_features": COUNT, "bias": FLAG, "activation_function": TEXT, "module_input_name": TEXT,
            "module_output_name": TEXT,
        },
        refused={"use_residual": "false"},
    ),
    "Normalize's config.json": Keys({"module_input_name": TEXT, "module_output_name": TEXT}),
}  # fmt: skip
"""By file; what is read of images stands with their image processors."""


def read_keys(path: Path, of: str = "", *, is_optional: bool = False) -> dict[str, Any]:
    """Read a JSON object whose keys are those of the file `of`, by default of its own name; raises ValueError.

    What is null, and what does not matter, is left out.
    """
    return check_keys(path.name if not of else f"{path.parent.name}/{path.name}", read_json(path, is_optional=is_optional), of)


def check_keys(name: str, document: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """Check the keys of the file `name` as those of the file `of`; raises ValueError that names file and key."""
    keys = FILES[of or name]
    for key, value in document.items():
        allowed = keys.read.get(key)
        if value is None or key in keys.irrelevant:
            continue
        if allowed is not None:
            is_wrong = not VALUES[allowed](value)
        elif key in keys.refused:
            is_wrong, allowed = value not in (False, 0, "", [], {}), keys.refused[key]
        else:
            is_wrong, allowed = not keys.has_others, f"the keys {', '.join(sorted({*keys.read, *keys.irrelevant}))}"
        if is_wrong:
            raise ValueError(f"{name}: {quote(key)[1:-1]}: found {outline_json(value)}; allowed: {allowed}")
    return {key: value for key, value in document.items() if value is not None and key not in keys.irrelevant}


def outline_json(value: object) -> str:
    """Outline a value of a JSON file, at most its first part."""
    return quote(value) if isinstance(value, str) else quote(value)[1:-1]

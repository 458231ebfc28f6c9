"""What a sentence-transformers directory says: where its model is, what becomes of a text before it and of the features behind it.

Such a directory has a `modules.json`. Without one transformers alone reads it, and so do we.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import quote
from .files import find_file, read_document
from .keys import check_keys, outline_json, read_keys

ORIGIN = "sentence_transformers."
METHODS = {
    "cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt", "weightedmean": "weighted_mean",
    "lasttoken": "last",
}  # fmt: skip
"""Our names of its poolings, by its own."""
FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Its own, by what its older files call them, in the order in which these are concatenated."""
TASKS = {
    "SentenceTransformer": ("feature-extraction", "last_hidden_state", "token_embeddings"),
    "CrossEncoder": ("sequence-classification", "logits", "scores"),
}
"""Of each kind of model that is served: its task, the model's output that counts, and what its Transformer module calls that."""
CONFIGURATIONS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names of the Transformer module's configuration; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class Step:
    """A module behind the pooling: "Dense", with its weights in `folder`, or "Normalize"."""

    kind: str
    folder: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sentences:
    """A directory of sentence-transformers; `model` is the folder of its transformers model and tokenizer."""

    model: Path
    is_cross_encoder: bool
    max_tokens: int | None
    """How long a text may be; None: as the tokenizer says."""
    lowers: bool
    """Whether texts are brought to lower case before the tokenizer's own normalising."""
    prompt: str
    """What is put before every text; of a pair before the first."""
    pooling: tuple[str, ...]
    """How the tokens' features become one vector; several: one behind the other."""
    steps: tuple[Step, ...]
    """What the pooled vector goes through, in this order."""
    truncate_dim: int | None
    """How many of the numbers at the end are kept."""
    similarity: str
    """How its vectors are to be compared."""
    activation: str | None
    """Of a cross-encoder: the class that is applied to its logits."""

    @property
    def is_compared_by_cosine(self) -> bool:
        """Whether cosines compare its vectors as it means it; of vectors of length 1 dot products are cosines."""
        has_length_1 = bool(self.steps) and self.steps[-1].kind == "Normalize" and self.truncate_dim is None
        return self.similarity == "cosine" or (self.similarity == "dot" and has_length_1)


def read_sentences(directory: Path) -> Sentences | None:
    """Read `modules.json` and all that it names; None where there is none. Raises ValueError that names file and key."""
    path = directory / "modules.json"
    if not path.is_file():
        return None
    modules = read_document(path)
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"modules.json: found {outline_json(modules)}; allowed: a list of objects, one for each module")
    facts = read_keys(directory / "config_sentence_transformers.json", is_optional=True)
    kind = str(facts.get("model_type", "SentenceTransformer"))
    if kind not in TASKS:
        raise ValueError(f"config_sentence_transformers.json: model_type: found {quote(kind)}; allowed: {' or '.join(TASKS)}")
    names, folders = zip(*(_read_module(directory, module) for module in modules), strict=True)
    is_cross_encoder = kind == "CrossEncoder"
    pooled = names == ("Transformer",) if is_cross_encoder else names[:2] == ("Transformer", "Pooling")
    behind = [name for name in names[2:] if name != "Dropout"]
    if not pooled or not {*behind} <= {"Dense", "Normalize"}:
        allowed = "Transformer" if is_cross_encoder else "Transformer, Pooling, then Dense, Normalize and Dropout in any order"
        raise ValueError(f"modules.json: type: found {', '.join(names)}; allowed: {allowed}")
    text = _read_transformer(folders[0], TASKS[kind])
    prompt = _find_prompt(facts)
    return Sentences(
        folders[0], is_cross_encoder, text.get("max_seq_length"), text.get("do_lower_case", False), prompt,
        () if is_cross_encoder else _read_pooling(folders[1], prompt),
        tuple(_read_step(*step) for step in zip(names[2:], folders[2:], strict=True) if step[0] != "Dropout"),
        facts.get("truncate_dim"), facts.get("similarity_fn_name", "cosine"), facts.get("activation_fn"),
    )  # fmt: skip


def _read_module(directory: Path, module: Mapping[str, Any]) -> tuple[str, Path]:
    """Return the name of a module's class, and its folder, which is inside the directory."""
    facts = check_keys("modules.json", module, "a module of modules.json")
    type_, folder = facts.get("type", ""), (directory / facts.get("path", "")).resolve()
    if not type_.startswith(ORIGIN):
        raise ValueError(f"modules.json: type: found {quote(type_)}; allowed: a module of sentence-transformers itself")
    if not folder.is_relative_to(directory.resolve()):
        raise ValueError(f"modules.json: path: found {quote(facts['path'])}; allowed: a folder inside the directory")
    name = type_.rpartition(".")[2]
    if name == "Transformer":
        find_file(directory, str(folder.relative_to(directory.resolve()) / "config.json"))
    return name, folder


def _read_transformer(folder: Path, task: tuple[str, str, str]) -> dict[str, Any]:
    """Read the Transformer module's configuration, which has to be that of a model which takes texts as they are."""
    name = next((name for name in CONFIGURATIONS if (folder / name).is_file()), CONFIGURATIONS[0])
    facts = read_keys(folder / name, CONFIGURATIONS[0], is_optional=True)
    text = {"method": "forward", "method_output_name": task[1]}
    expected = {"transformer_task": task[0], "modality_config": {"text": text}, "module_output_name": task[2]}
    for key, value in expected.items():
        if (found := facts.get(key, value)) != value:
            raise ValueError(f"{name}: {key}: found {outline_json(found)}; allowed: {outline_json(value)}")
    return facts


def _find_prompt(facts: Mapping[str, Any]) -> str:
    name, prompts = facts.get("default_prompt_name"), facts.get("prompts", {})
    if name is not None and name not in {*prompts, "query", "document"}:
        allowed = f"one of prompts: {', '.join(map(repr, prompts)) or 'none'}"
        raise ValueError(f"config_sentence_transformers.json: default_prompt_name: found {quote(name)}; {allowed}")
    return prompts.get(name) or "" if name else ""


def _read_pooling(folder: Path, prompt: str) -> tuple[str, ...]:
    facts = read_keys(folder / "config.json", "Pooling's config.json")
    said: str | Sequence[str] = facts.get("pooling_mode") or [name for key, name in FLAGS.items() if facts.get(key)] or ["mean"]
    names = [said] if isinstance(said, str) else said
    if not {*names} <= METHODS.keys():
        raise ValueError(f"{folder.name}/config.json: pooling_mode: found {outline_json(said)}; allowed: {', '.join(METHODS)}")
    if prompt and not facts.get("include_prompt", True):
        raise ValueError(f"{folder.name}/config.json: include_prompt: found false beside a default prompt; allowed: true")
    return tuple(METHODS[name] for name in names)


def _read_step(kind: str, folder: Path) -> Step:
    facts = read_keys(folder / "config.json", f"{kind}'s config.json", is_optional=kind == "Normalize")
    for key in ("module_input_name", "module_output_name"):
        if (found := facts.get(key, "sentence_embedding")) != "sentence_embedding":
            raise ValueError(f"{folder.name}/config.json: {key}: found {quote(found)}; allowed: 'sentence_embedding'")
    return Step(kind, folder, facts)

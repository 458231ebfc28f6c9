"""What a Hugging Face directory says about a text: the tokenizer that transformers makes of it, and how that is used.

The library's own AutoTokenizer reads the tokenizer's files, for what they say together only its classes know: a flag of
`tokenizer_config.json` may count more than `tokenizer.json`, or less.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from ..errors import outline, quote, without_panics
from .files import Fault
from .keys import read_keys
from .sentences import read_sentences

FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
"""The tokenizer's files that are JSON objects."""
VOCABULARIES = ("tokenizer.json", "tokenizer.[0-9]*.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json")
"""Files with a vocabulary; without one the library's classes make up a tokenizer of a few words."""
PADDED = "siglip"
"""How model types begin that were trained on padding without a mask, and so always see `max_tokens`."""
OFFSET_POSITIONS = {
    "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert", "layoutlmv3",
    "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Model types whose first position is the one behind that of the padding, at `pad_token_id`: of 514 they take 512 tokens."""
ENDLESS = 10**9
"""From here on a tokenizer's length says nothing; transformers writes 1e30."""


def import_transformers() -> Any:
    """Import transformers; raises ValueError with the command that installs it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        why = f"transformers, which reads the directory, cannot be imported ({error})"
        raise ValueError(f"{why}; pip install 'twinfer[hf]'") from None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern))


def open_tokenizer(directory: Path) -> Any:
    """Make the tokenizer of a directory, as transformers and sentence-transformers do; raises ValueError."""
    sentences = read_sentences(directory)
    tokenizer = _make_tokenizer(sentences.model if sentences else directory)
    if sentences and sentences.lowers:
        if not tokenizer.is_fast:
            raise ValueError("sentence_bert_config.json: do_lower_case: found true for a tokenizer in Python; allowed: false")
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *_list_normalizers(backend)])
    return tokenizer


def _list_normalizers(tokenizer: Tokenizer) -> list[Any]:
    is_several = isinstance(tokenizer.normalizer, normalizers.Sequence)
    found: Any = tokenizer.normalizer
    return list(found) if is_several else [] if found is None else [found]


def _make_tokenizer(model: Path) -> Any:
    """Let AutoTokenizer read a folder; whatever its files make that stumble over becomes a ValueError."""
    if not has_tokenizer(model):
        raise ValueError(f"no tokenizer in {quote(model.name)}; allowed: what the save_pretrained of an AutoTokenizer writes")
    for name in FILES:
        read_keys(model / name, is_optional=True)
    transformers = import_transformers()
    # What it would report is compared with what it makes.
    transformers.utils.logging.set_verbosity_error()
    try:
        with without_panics():
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        lengths = (tokenizer.model_max_length, tokenizer.pad_token_id, len(tokenizer))  # a damaged file is found out here
    except Exception as error:  # whatever its JSON makes it stumble over
        found = f"transformers {transformers.__version__} cannot read the tokenizer ({type(error).__name__}: {outline(error)})"
        raise ValueError(f"{', '.join(name for name in FILES if (model / name).is_file())}: {found}") from None
    if not lengths[2]:
        raise ValueError(f"no word in the tokenizer of {quote(model.name)}; allowed: a vocabulary")
    return tokenizer


def read_text(table: Mapping[str, Any], directory: Path, model: str, has_head: bool) -> dict[str, Any]:
    """Read what a directory says of a text input; `model` is the member's, "hf:DIR". Raises ValueError that names file and key.

    `has_head`: whether the member gives logits, not features. A length need not be there where the table has its own.
    """
    sentences = read_sentences(directory)
    config = _read_configuration(sentences.model if sentences else directory)
    tokenizer = open_tokenizer(directory)
    part = getattr(config, "text_config", None) or config
    found: dict[str, Any] = {
        "tokenizer": model if tokenizer.is_fast else _find_file(model, sentences.model if sentences else directory, directory),
        "truncation_side": tokenizer.truncation_side,
        "mask": not str(config.model_type).startswith(PADDED),
        "prompt": sentences.prompt if sentences else "",
        "pair": _takes_pairs(config) or bool(sentences and sentences.is_cross_encoder),
    }
    found["max_tokens"] = _find_length(tokenizer, part, sentences.max_tokens if sentences else None)
    if "max_tokens" not in table and found["max_tokens"] is None:
        length = tokenizer.model_max_length
        raise ValueError(f"no length in the tokenizer's files (found {length!r}); allowed: max_tokens in the ensemble's file")
    takes_mask, pair = table.get("mask", found["mask"]), table.get("pair", found["pair"])
    parameters = _find_parameters(config, has_head)
    if found["mask"] and parameters and "attention_mask" not in parameters and "mask" not in table:
        what = f"{quote(config.model_type)}, which takes no attention_mask and would answer by its padding"
        raise ValueError(f"config.json: model_type: found {what}; allowed: a model that takes one")
    # Behind a mask no member sees where the padding is.
    if not takes_mask and tokenizer.padding_side != "right":
        raise ValueError(
            f"the tokenizer's padding_side is {quote(tokenizer.padding_side)} for a model without a mask; allowed: 'right'"
        )
    found["token_types"] = takes_mask and _find_types(tokenizer, part, parameters, bool(pair), table.get("token_types"))
    found["pad_id"] = _find_pad_id(tokenizer, part, has_head and takes_mask, "pad_id" in table)
    return found


def _read_configuration(model: Path) -> Any:
    """Let AutoConfig read a model's config.json: it knows what older files leave out, or call otherwise."""
    transformers = import_transformers()
    try:
        return transformers.AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its JSON makes it stumble over
        found = f"transformers {transformers.__version__} cannot read it ({type(error).__name__}: {outline(error)})"
        raise ValueError(f"config.json: {found}") from None


def _find_file(model: str, folder: Path, directory: Path) -> str:
    """Return the tokenizer.json of a tokenizer that the library computes in Python: the load compares the two."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError("tokenizer_config.json: its tokenizer_class computes in Python; allowed: one with a tokenizer.json")
    return str(Path(model.partition(":")[2]) / (folder / "tokenizer.json").relative_to(directory.resolve()))


def _find_length(tokenizer: Any, config: Any, sentences: int | None) -> int | None:
    """Return the most tokens that tokenizer and model take together; None where neither says it."""
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and config.model_type in OFFSET_POSITIONS and isinstance(config.pad_token_id, int):
        positions -= config.pad_token_id + 1
    lengths = [sentences or tokenizer.model_max_length, positions]
    said = [int(length) for length in lengths if isinstance(length, int | float) and 0 < length < ENDLESS]
    return min(said, default=None)


def _takes_pairs(config: Any) -> bool:
    """Whether sentence-transformers has written the configuration of a cross-encoder."""
    return any(getattr(config, key, None) for key in ("sentence_transformers", "sbert_ce_default_activation_function"))


def _find_parameters(config: Any, has_head: bool) -> set[str]:
    """Return what the model of this configuration can be called with; empty where transformers has no such model."""
    transformers = import_transformers()
    auto = transformers.AutoModelForSequenceClassification if has_head else transformers.AutoModel
    classes = auto._model_mapping.get(type(config), ())
    classes = classes if isinstance(classes, tuple) else (classes,)
    return {name for one in classes for name in inspect.signature(one.forward).parameters}


def _find_types(tokenizer: Any, config: Any, parameters: set[str], pair: bool, wanted: object) -> bool:
    """Whether the model has to be given the library's token types, because without them it would answer otherwise.

    Raises Fault where the ensemble's file wants types that the library does not give, or leaves out those that count.
    """
    sizes = getattr(config, "type_vocab_size", None)
    gives = "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in parameters and sizes != 0 and tokenizer.is_fast
    # A model with a table of types takes 0 for what is not said; others then have no types at all.
    needs = gives and (pair or sizes is None or any(tokenizer("a")["token_type_ids"]))
    if wanted is True and not gives:
        raise Fault("token_types", "true, and the library gives this model none (model_input_names)", "false")
    if wanted is False and needs:
        raise Fault("token_types", "false, and the library gives this model types (model_input_names)", "true")
    return needs


def _find_pad_id(tokenizer: Any, config: Any, has_head: bool, is_given: bool) -> int:
    """Return the id of the padding. A head may look for the padding by the model's own id, so there that counts first."""
    own, configured = tokenizer.pad_token_id, getattr(config, "pad_token_id", None)
    ids = [id_ for id_ in ((configured, own) if has_head else (own, configured)) if isinstance(id_, int) and id_ >= 0]
    if not ids and has_head and not is_given:
        found = "config.json has no pad_token_id and tokenizer_config.json no pad_token, and the head finds the last token by them"
        raise Fault("pad_id", f"nothing, for {found}", "one of these, or pad_id in the ensemble's file")
    return ids[0] if ids else 0

"""Hugging Face directories: `hf:DIR`, a directory of the folder, read by transformers' Auto classes. Nothing is downloaded.

The output's kind picks the class: "logits" a classification head, "detections" an object detection head, everything else the
model without a head, whose features become one vector per sample. Python in the directory is never run; `.safetensors` are
data, and a directory that has only a `pytorch_model.bin`, which is a pickle, has to be trusted.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidEnsemble, quote
from ..spec import find_directory, find_file, find_model, read_config, read_sentences, uses_head
from .model import LoadedModel, count_bytes, list_tensors
from .pooling import Pooling, embed, find_pooling
from .source import TEXT, Source, hash_files
from .weights import PICKLE_SUFFIX, is_pickled, list_weights

COUNTED = ("*.json", "*.safetensors", "pytorch_model*.bin", "vocab.txt", "merges.txt", "*.model", "*.tiktoken")
"""The files of a directory that say what the model computes: configuration, weights and vocabularies."""
FEATURES = ("AutoModel", "AutoModelForTextEncoding")
"""The classes of models without a head."""
UNREAD_MASKS = "sdpa_with_unread_masks"


class NamedArguments(nn.Module):
    """A model that is called by position, and whose features are pooled where it has no head."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], pooling: Pooling | None) -> None:
        """Name the arguments of `model`."""
        super().__init__()
        self.model = model
        self.names = names
        self.pooling = pooling
        self.steps = pooling.steps if pooling else None  # so that torch knows their weights

    def forward(self, *arguments: Tensor) -> Mapping[str, Tensor] | Tensor:
        """Return the model's outputs by name; or where its features are pooled, float32 [samples, features]."""
        inputs = dict(zip(self.names, arguments, strict=True))
        if self.pooling is not None:
            return embed(self.model, inputs, self.pooling)
        outputs: Mapping[str, Tensor] = self.model(**inputs)
        return outputs


def load_huggingface(source: Source) -> LoadedModel:
    """Load a directory's model onto the device, in float32; raises UntrustedCode for a pickle, and InvalidEnsemble.

    The digest is of all files that say what the model computes: the configuration, in JSON, the weights and the vocabularies.
    """
    try:
        directory = find_directory(source.folder, source.spec.model)
        files = [find_file(directory, str(path.relative_to(directory))) for path in sorted(directory.rglob("*")) if path.is_file()]
        sentences, facts, folder = read_sentences(directory), read_config(directory), find_model(directory)
    except ValueError as error:
        raise InvalidEnsemble(f"{source.key}.model: {error}") from None
    transformers = source.import_extra("transformers", "hf")
    weights, counted = _find_weights(source, folder), [path for path in files if any(map(path.match, COUNTED))]
    is_pickle = is_pickled(weights)
    name = _name_class(source, facts)
    # What it would report is checked below.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cannot_load = f"which transformers {transformers.__version__} cannot load as {name}"
    allowed = "a directory that model.save_pretrained has written, for an architecture of transformers"
    copying = _copy_pickles(source, weights) if is_pickle else nullcontext(folder)
    with source.holding(counted), copying as place:
        with source.reading(cannot_load, allowed):
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            _set_up(source, config, name)
            if name == "AutoModel" and _has_encoder(transformers, config):
                name = "AutoModelForTextEncoding"
            model, found = getattr(transformers, name).from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True,
                trust_remote_code=False, use_safetensors=not is_pickle,
            )  # fmt: skip
        pooling = find_pooling(source, sentences, model) if name in FEATURES else None
        digest = hash_files(directory, counted)
    _leave_masks_unread(transformers, model)
    may_miss = ("pooler.",) if pooling and pooling.methods != ("pooler",) else ()
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(may_miss))
    if missing:
        raise source.refuse(
            f"which has no weights for {quote(', '.join(missing))} of {type(model).__name__}",
            f"an output.kind that {config.architectures} was saved with",
        )
    module = NamedArguments(model, _name_arguments(source), pooling).to(source.device).eval().requires_grad_(False)
    return LoadedModel(module, "huggingface", count_bytes(list_tensors(module)), digest)


def _has_encoder(transformers: Any, config: Any) -> bool:
    """Whether a model has an encoder that alone has the features of a text, as T5's kind."""
    encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    return bool(getattr(config, "is_encoder_decoder", False)) and type(config) in encoders


def _set_up(source: Source, config: Any, name: str) -> None:
    """Let a model give what is asked of it alone, by name, and find the padding of a text behind its last token."""
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    text = config.get_text_config()
    for spec in source.spec.input.values():
        if spec.kind == "text" and name not in FEATURES and (text.pad_token_id is None or text.pad_token_id < 0):
            text.pad_token_id = spec.pad_id


def _name_class(source: Source, config: Mapping[str, Any]) -> str:
    kind = source.spec.output.kind
    if kind == "probabilities":
        raise InvalidEnsemble(f"{source.key}.output.kind: found 'probabilities', and the model gives logits; allowed: 'logits'")
    if uses_head({"output": {"kind": kind}, "pooling": source.spec.pooling}, config):
        takes_text = any(spec.kind == "text" for spec in source.spec.input.values())
        return "AutoModelForSequenceClassification" if takes_text else "AutoModelForImageClassification"
    return "AutoModelForObjectDetection" if kind == "detections" else "AutoModel"


def _name_arguments(source: Source) -> tuple[str, ...]:
    names: list[str] = []
    for name, spec in source.spec.input.items():
        if spec.kind == "text":
            names += TEXT[: 1 + spec.mask + spec.token_types]
        else:
            names.append("pixel_values" if spec.kind == "image" else name)
    return tuple(names)


def _leave_masks_unread(transformers: Any, model: Any) -> None:
    """Let a model that computes torch's attention (sdpa) never read its mask on the host; other models keep theirs.

    transformers leaves the mask out where nothing is padded, and to see that waits for the device: on a GPU that holds the launch
    thread up, and no CUDA graph can hold it. Here the mask is always used.
    """
    if model.config._attn_implementation != "sdpa":
        return
    masking = importlib.import_module("transformers.masking_utils")
    attention = importlib.import_module("transformers.integrations.sdpa_attention")

    def make_mask(*arguments: Any, **options: Any) -> Any:
        unread = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return masking.sdpa_mask(*arguments, **options | unread)

    transformers.AttentionMaskInterface.register(UNREAD_MASKS, make_mask)
    transformers.AttentionInterface.register(UNREAD_MASKS, attention.sdpa_attention_forward)
    model.set_attn_implementation(UNREAD_MASKS)


def _find_weights(source: Source, directory: Path) -> list[Path]:
    """Return the files that have the weights; raises InvalidEnsemble where there are none, or not all that an index names."""
    try:
        weights = list_weights(directory)
    except ValueError as error:
        raise source.refuse(f"whose {error}", "all files of the weights, inside the directory") from None
    if not weights:
        raise source.refuse("which has no weights", "a directory with model.safetensors, or a trusted pytorch_model.bin")
    return weights


@contextmanager
def _copy_pickles(source: Source, weights: Sequence[Path]) -> Iterator[Path]:
    """Copy trusted pickles into a directory of their own, so that the bytes that are hashed are those that are loaded."""
    with TemporaryDirectory() as directory:
        for path in weights:
            content = path.read_bytes()
            if path.suffix == PICKLE_SUFFIX:
                source.trust.admit_bytes(f"{source.key}.model", path, content)
            (Path(directory) / path.name).write_bytes(content)
        yield Path(directory)

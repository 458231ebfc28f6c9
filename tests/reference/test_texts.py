"""Directories of text models as they are published: each answers as its own library does, or is refused by a key's name."""

import inspect
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor

from tests.reference.families import FAMILIES, PAIRS, TEXTS, copy_directory, save_family
from tests.servers import write_ensemble
from tests.sources import load_folder
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import Member
from twinfer_server.trust import Trust

TOLERANCE = 1e-5


def load_member(folder: Path, name: str, task: str = "classification", keys: str = "", own: str = "") -> Member:
    """Load an ensemble of the directory alone, with all its checks; `keys` are those of its text, `own` those of the member."""
    method = {"embedding": "concatenation"}.get(task, "weighted_mean")
    write_ensemble(
        folder,
        f'name = "one"\nversion = 1\ntask = "{task}"\n[members.m]\nmodel = "hf:{name}"\n{own}\n'
        f'[members.m.input.text]\nkind = "text"\n'
        f'{keys}\n[fusion]\nmethod = "{method}"\n[batching]\nmax_batch_size = 4\n',
    )
    (member,) = load_folder(folder, Trust()).members
    return member


def ask(member: Member, texts: Sequence[str | tuple[str, ...]], most: int = 3) -> Tensor:
    """Return what a member computes, of up to `most` texts at a time."""
    (kind,) = member.request_inputs
    found = []
    with torch.inference_mode():
        for first in range(0, len(texts), most):
            samples = [kind.prepare(kind.decode(text)) for text in texts[first : first + most]]
            buffers, bucket = member.buffers[0], member.bucket(samples)
            buffers.write(samples, bucket)
            buffers.copy_in(bucket)
            found.append(member.compute(buffers, bucket)[0][: len(samples)].clone())
    return torch.cat(found)


def ask_library(directory: Path, model: Any, texts: Sequence[str | tuple[str, ...]], max_tokens: int) -> Tensor:
    """Return the logits of each text alone, or the features of a text tower, or the mean of an encoder's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if getattr(model.config, "pad_token_id", 0) in (None, -1):
        model.config.pad_token_id = tokenizer.pad_token_id  # without it the library takes no batches
    compute = getattr(model, "get_text_features", model)
    found = []
    for text in texts:
        parts = (text,) if isinstance(text, str) else text
        given = tokenizer(*parts, truncation=True, max_length=max_tokens, return_tensors="pt")
        takes = inspect.signature(model.forward).parameters
        with torch.inference_mode():
            answer = compute(**{name: value for name, value in given.items() if name in takes})
        found.append(answer.logits if "logits" in answer else answer.get("pooler_output", answer.last_hidden_state.mean(1)))
    return torch.cat(found)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= TOLERANCE * max(1.0, expected.abs().max().item())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directories of all families, and their models."""
    folder = tmp_path_factory.mktemp("published")
    models = {name: save_family(folder / name, family) for name, family in FAMILIES.items()}
    models["t5-small's encoder"] = transformers.T5EncoderModel.from_pretrained(folder / "t5-small's encoder").eval()
    return folder, models


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_the_library_does_or_is_refused_by_name(tmp_path: Path, published: Any, name: str) -> None:
    directories, models = published
    family = FAMILIES[name]
    shutil.copytree(directories / name, tmp_path / "m")
    task = "classification" if family.has_head else "embedding"
    if family.refused:
        with pytest.raises(InvalidEnsemble, match=re.escape(family.refused)):
            load_member(tmp_path, "m", task, own=family.keys)
        return
    member = load_member(tmp_path, "m", task, own=family.keys)
    max_tokens = member.spec.input["text"].max_tokens  # type: ignore[union-attr]
    assert_close(ask(member, TEXTS, family.most), ask_library(tmp_path / "m", models[name], TEXTS, max_tokens))
    if family.has_head:
        member = load_member(tmp_path, "m", task, "pair = true")
        assert_close(ask(member, PAIRS, family.most), ask_library(tmp_path / "m", models[name], PAIRS, max_tokens))


CONTRADICTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "a cased file, and do_lower_case": ("bert-base-cased", {"do_lower_case": True}),
    "a file that lowers, and no do_lower_case": ("bert-base-uncased", {"do_lower_case": False}),
    "strip_accents": ("bert-base-cased", {"strip_accents": True}),
    "tokenize_chinese_chars": ("bert-base-cased", {"tokenize_chinese_chars": False}),
    "add_prefix_space": ("roberta-base", {"add_prefix_space": True}),
    "add_bos_token": ("llama", {"add_bos_token": True}),
    "add_eos_token": ("llama", {"add_eos_token": True}),
    "split_special_tokens": ("bert-base-cased", {"split_special_tokens": True}),
    "another class": ("bert-base-cased", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
    "a short model_max_length": ("bert-base-cased", {"model_max_length": 12}),
    "an endless model_max_length": ("roberta-base", {"model_max_length": 10**30}),
    "no model_max_length": ("xlm-roberta-base", {"model_max_length": None}),
    "truncation on the left": ("roberta-base", {"truncation_side": "left"}),
    "padding on the left": ("bert-base-cased", {"padding_side": "left"}),
    "another sep_token": ("bert-base-cased", {"sep_token": "[MASK]"}),
    "a new special token": ("bert-base-cased", {"additional_special_tokens": ["cat"]}),
    "no mask among the names": ("bert-base-cased", {"model_input_names": ["input_ids"]}),
    "no types among the names": ("bert-base-cased", {"model_input_names": ["input_ids", "attention_mask"]}),
    "legacy": ("t5-small", {"legacy": False}),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_flag_of_the_configuration_counts_as_much_as_to_the_library(tmp_path: Path, published: Any, name: str) -> None:
    directories, models = published
    family, facts = CONTRADICTIONS[name]
    directory = copy_directory(directories / family, tmp_path / "m", **facts)
    most = FAMILIES[family].most
    for texts, keys in ((TEXTS, ""), (PAIRS, "pair = true")):
        member = load_member(tmp_path, "m", keys=keys)
        max_tokens = member.spec.input["text"].max_tokens  # type: ignore[union-attr]
        assert_close(ask(member, texts, most), ask_library(directory, models[family], texts, max_tokens))


def test_a_directory_of_a_vocabulary_alone_is_read_by_the_library(tmp_path: Path, published: Any) -> None:
    directories, models = published
    directory = tmp_path / "m"
    shutil.copytree(directories / "bert-base-uncased", directory)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    for path in directory.glob("*token*"):
        path.unlink()
    (directory / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    member = load_member(tmp_path, "m")
    assert_close(ask(member, TEXTS), ask_library(directory, models["bert-base-uncased"], TEXTS, 64))


@pytest.fixture(scope="module")
def encoder(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a head, and its tokenizer, as sentence-transformers begins with it."""
    directories, models = published
    directory = tmp_path_factory.mktemp("encoder")
    models["bert-base-cased"].bert.save_pretrained(directory)
    for path in (directories / "bert-base-cased").glob("*token*"):
        shutil.copy(path, directory)
    return directory


def dense(activation: torch.nn.Module, size: int = 32) -> Any:
    return Dense(size, 16, activation_function=activation)


LAYOUTS: dict[str, tuple[list[Callable[[], Any]], dict[str, Any]]] = {
    "mean": ([lambda: Pooling(32, "mean")], {}),
    "cls and length 1": ([lambda: Pooling(32, "cls"), Normalize], {}),
    "max": ([lambda: Pooling(32, "max")], {}),
    "last": ([lambda: Pooling(32, "lasttoken")], {}),
    "weighted mean": ([lambda: Pooling(32, "weightedmean")], {}),
    "mean by the root of the length": ([lambda: Pooling(32, "mean_sqrt_len_tokens")], {}),
    "two poolings": ([lambda: Pooling(32, ("mean", "cls")), Normalize], {}),
    "three poolings": ([lambda: Pooling(32, ("cls", "max", "mean"))], {}),
    "LaBSE": ([lambda: Pooling(32, "cls"), lambda: dense(torch.nn.Tanh()), Normalize], {}),
    "sentence-t5": (
        [lambda: Pooling(32, "mean"), lambda: Dense(32, 16, bias=False, activation_function=torch.nn.Identity()), Normalize],
        {},
    ),
    "two Dense": ([lambda: Pooling(32, "mean"), Normalize, lambda: dense(torch.nn.GELU()), lambda: Dense(16, 8)], {}),
    "do_lower_case": ([lambda: Pooling(32, "mean")], {"sentence_bert_config.json": {"do_lower_case": True}}),
    "max_seq_length": ([lambda: Pooling(32, "mean")], {"sentence_bert_config.json": {"max_seq_length": 9}}),
    "a default prompt": (
        [lambda: Pooling(32, "mean")],
        {"config_sentence_transformers.json": {"prompts": {"query": "query: "}, "default_prompt_name": "query"}},
    ),
    "truncate_dim": ([lambda: Pooling(32, "mean"), Normalize], {"config_sentence_transformers.json": {"truncate_dim": 8}}),
    "a Transformer in a folder of its own": ([lambda: Pooling(32, "mean"), Normalize], {"0_Transformer": {}}),
    "the older flags": (
        [lambda: Pooling(32, "mean")],
        {
            "1_Pooling/config.json": {
                "pooling_mode": None,
                "word_embedding_dimension": 32,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": True,
                "pooling_mode_max_tokens": False,
            }
        },
    ),
}


def save_layout(directory: Path, encoder: Path, modules: list[Callable[[], Any]], changes: dict[str, Any]) -> None:
    """Let sentence-transformers write a model, and change the files by name."""
    torch.manual_seed(3)
    SentenceTransformer(modules=[Transformer(str(encoder)), *(make() for make in modules)], device="cpu").save(str(directory))
    for name, facts in changes.items():
        if name == "0_Transformer":
            (directory / name).mkdir()
            for path in [path for path in directory.iterdir() if path.is_file() and path.name not in KEPT]:
                path.rename(directory / name / path.name)
            modules_ = json.loads((directory / "modules.json").read_text())
            modules_[0]["path"] = name
            (directory / "modules.json").write_text(json.dumps(modules_))
            continue
        found = json.loads((directory / name).read_text()) | facts
        (directory / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


KEPT = ("modules.json", "config_sentence_transformers.json", "README.md")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_embeds_as_sentence_transformers_does(tmp_path: Path, encoder: Path, name: str) -> None:
    save_layout(tmp_path / "m", encoder, *LAYOUTS[name])
    expected = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert_close(ask(load_member(tmp_path, "m", "embedding"), TEXTS), expected)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers weighed": ("modules.json", {"type": "sentence_transformers.models.WeightedLayerPooling"}, "modules.json: type: found"),
    "words weighed": ("modules.json", {"type": "sentence_transformers.models.WordWeights"}, "modules.json: type: found"),
    "a module of somebody": ("modules.json", {"type": "mine.Pooling"}, "modules.json: type: found 'mine.Pooling'"),
    "kwargs": ("modules.json", {"kwargs": ["task"]}, "modules.json: kwargs: found"),
    "a folder outside": ("modules.json", {"path": "../.."}, "modules.json: path: found"),
    "sparse": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type: found 'SparseEncoder'"),
    "an unknown key": ("config_sentence_transformers.json", {"rotate": 1}, "config_sentence_transformers.json: rotate: found 1"),
    "a prompt that is not there": (
        "config_sentence_transformers.json",
        {"default_prompt_name": "x"},
        "default_prompt_name: found 'x'",
    ),
    "a chat": (
        "sentence_bert_config.json",
        {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
        "modality_config: found",
    ),
    "processor_kwargs": (
        "sentence_bert_config.json",
        {"processor_kwargs": {"add_special_tokens": False}},
        "processor_kwargs: found",
    ),
    "another task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task: found 'fill-mask'"),
    "an unknown pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode: found 'median'"),
    "an activation of somebody": ("2_Dense/config.json", {"activation_function": "mine.Act"}, "activation_function 'mine.Act'"),
    "a residual": ("2_Dense/config.json", {"use_residual": True}, "2_Dense/config.json: use_residual: found True"),
    "Dense on tokens": (
        "2_Dense/config.json",
        {"module_input_name": "token_embeddings"},
        "module_input_name: found 'token_embeddings'",
    ),
    "another size": ("2_Dense/config.json", {"out_features": 99}, "2_Dense"),
    "Python": ("config.json", {"auto_map": {"AutoModel": "x.Y"}}, "config.json: auto_map: found"),
    "quantised weights": (
        "config.json",
        {"quantization_config": {"quant_method": "gptq"}},
        "config.json: quantization_config: found",
    ),
    "layers without end": ("config.json", {"num_hidden_layers": 10**9}, "config.json: num_hidden_layers: found 1000000000"),
}


@pytest.fixture(scope="module")
def layout(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("layout") / "m"
    save_layout(directory, encoder, [lambda: Pooling(32, "mean"), lambda: dense(torch.nn.Tanh())], {})
    return directory


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_file_and_key(tmp_path: Path, layout: Path, name: str) -> None:
    file, facts, message = REFUSED[name]
    path = tmp_path / "m" / file
    shutil.copytree(layout, tmp_path / "m")
    found = json.loads(path.read_text())
    if isinstance(found, list):
        found[1] |= facts
    path.write_text(json.dumps(found if isinstance(found, list) else found | facts))
    with pytest.raises(InvalidEnsemble, match=re.escape(message)):
        load_member(tmp_path, "m", "embedding")


ONE = {"num_labels": 1, "id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
HEADS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing said": ({}, "multi_label"),
    "a sigmoid": ({"sentence_transformers": {"activation_fn": SIGMOID}}, "multi_label"),
    "a number": ({"sentence_transformers": {"activation_fn": IDENTITY}}, "tensor"),
    "a number, said as it was": ({"sbert_ce_default_activation_function": IDENTITY}, "tensor"),
    "a regressor": ({"problem_type": "regression"}, "tensor"),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("saved", ["by transformers", "by sentence-transformers"])
def test_a_head_of_one_logit_is_served_as_what_it_is(tmp_path: Path, published: Any, name: str, saved: str) -> None:
    directories, _ = published
    facts, task = HEADS[name]
    shutil.copytree(directories / "bert-base-cased", tmp_path / "m")
    config = transformers.BertConfig.from_pretrained(tmp_path / "m")
    torch.manual_seed(5)
    config.num_labels = 1
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ONE | facts))
    is_number = torch.nn.Identity() if facts.get("problem_type") else None  # which the cross-encoder does not look at
    library = CrossEncoder(str(tmp_path / "m"), device="cpu", activation_fn=is_number)
    if saved == "by sentence-transformers":
        library.save(str(tmp_path / "n"))
    directory = "n" if saved == "by sentence-transformers" else "m"
    found = ask(load_member(tmp_path, directory, task, "pair = true"), PAIRS)
    expected = library.predict(PAIRS, convert_to_tensor=True).unsqueeze(1)
    assert_close(found.sigmoid() if task == "multi_label" else found, expected)
    with pytest.raises(InvalidEnsemble, match=r"for task 'classification'; allowed: .*task '(multi_label|tensor)'"):
        load_member(tmp_path, directory, "classification", "pair = true")

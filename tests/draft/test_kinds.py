"""Sources of every kind: what `twinfer init` writes is loaded as `twinfer validate` does, or it says what is missing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import FLOAT, describe_value, make_weights, move_weights, save_linear, save_nodes, save_pooled, save_text
from tests.pretrained import MAX_TOKENS, SMALL, WORDS, make_tokenizer, save, save_bert, save_clip, save_vit, save_yolos
from twinfer_server.draft import CannotDraft, MemberDraft, check_folder, draft_member, draft_towers, write_folder
from twinfer_server.spec import EnsembleSpec, read_spec

Source = tuple[str, str]
"""What is given on the command line: a source, and the task of a graph."""


BERT = {"model_type": "bert", "max_position_embeddings": MAX_TOKENS, "vocab_size": len(WORDS)}


def save_encoder(directory: Path, with_mean: bool = True) -> str:
    config = transformers.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=MAX_TOKENS)
    save(directory, transformers.BertModel(config), make_tokenizer())
    if with_mean:
        modules = [{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
                   for n, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))]  # fmt: skip
        (directory / "modules.json").write_text(json.dumps(modules))
        (directory / "1_Pooling").mkdir()
        (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return f"hf:{directory}"


def save_decoder(directory: Path) -> str:
    sizes = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(WORDS), "max_position_embeddings": MAX_TOKENS}
    config = transformers.Qwen3Config(**sizes | {"num_labels": 2, "pad_token_id": 0})
    save(directory, transformers.Qwen3ForSequenceClassification(config), make_tokenizer())
    return f"hf:{directory}"


def save_pickle(directory: Path) -> str:
    model = save_vit(directory)
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    return f"hf:{directory}"


def save_several_labels(directory: Path) -> str:
    model = save_bert(directory)
    model.config.problem_type = "multi_label_classification"
    model.config.save_pretrained(directory)
    return f"hf:{directory}"


def save_sorter(path: Path) -> str:
    """Write what scikit-learn's converters do: the best class first, and its probabilities behind."""
    weights = numpy_helper.from_array(make_weights(0, 8, 3), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [describe_value("label", TensorProto.INT64, ["n"]), describe_value("probabilities", FLOAT, ["n", 3])]
    return str(save_nodes(path, nodes, [describe_value("x", FLOAT, ["n", 8])], outputs, [weights]))


def save_two_outputs(path: Path) -> str:
    weights = [numpy_helper.from_array(make_weights(seed, 8, 3), name) for seed, name in enumerate("wv")]
    nodes = [helper.make_node("MatMul", ["x", name], [f"by_{name}"]) for name in "wv"]
    outputs = [describe_value(f"by_{name}", FLOAT, ["n", 3]) for name in "wv"]
    return str(save_nodes(path, nodes, [describe_value("x", FLOAT, ["n", 8])], outputs, weights))


def save_bert_graph(folder: Path, kind: int = TensorProto.INT64, takes_types: bool = False, has_config: bool = True) -> str:
    """Write a graph of texts with the files of its tokenizer beside it, as exporters do."""
    path = save_text(folder / "model.onnx", kind, len(WORDS), takes_types)
    make_tokenizer().save_pretrained(folder)
    if has_config:
        (folder / "config.json").write_text(json.dumps(BERT))
    return str(path)


SERVED: dict[str, Callable[[Path], Sequence[Source]]] = {
    "a classifier of pictures": lambda at: [(f"hf:{save_vit(at / 'm') and at / 'm'}", "")],
    "a classifier of texts": lambda at: [(f"hf:{save_bert(at / 'm') and at / 'm'}", "")],
    "both": lambda at: [(f"hf:{save_vit(at / 'a') and at / 'a'}", ""), (f"hf:{save_bert(at / 'b') and at / 'b'}", "")],
    "the same twice": lambda at: [(f"hf:{save_vit(at / 'm') and at / 'm'}", "")] * 2,
    "a classifier of several labels": lambda at: [(save_several_labels(at / "m"), "")],
    "a decoder with a head": lambda at: [(save_decoder(at / "m"), "")],
    "a detector": lambda at: [(f"hf:{save_yolos(at / 'm') and at / 'm'}", "")],
    "an encoder of sentences": lambda at: [(save_encoder(at / "m"), "")],
    "a graph": lambda at: [(str(save_linear(at / "m.onnx")), "classification")],
    "a graph of several labels": lambda at: [(str(save_linear(at / "m.onnx")), "multi_label")],
    "a graph of an embedding": lambda at: [(str(save_linear(at / "m.onnx")), "embedding")],
    "a graph of any tensor": lambda at: [(str(save_linear(at / "m.onnx", columns=(2, 8))), "tensor")],
    "a graph that ends in a softmax": lambda at: [(str(save_linear(at / "m.onnx", last="Softmax")), "classification")],
    "a graph that ends in a sigmoid": lambda at: [(str(save_linear(at / "m.onnx", last="Sigmoid")), "multi_label")],
    "a graph of scikit-learn's kind": lambda at: [(save_sorter(at / "m.onnx"), "classification")],
    "a graph in two files": lambda at: [(str(move_weights(save_linear(at / "m.onnx"), "m.data")), "classification")],
    "a graph of halves": lambda at: [(str(save_linear(at / "m.onnx", kind=TensorProto.FLOAT16)), "classification")],
    "a graph of bfloat16": lambda at: [(str(save_linear(at / "m.onnx", kind=TensorProto.BFLOAT16)), "classification")],
    "a graph of bytes": lambda at: [(str(save_pooled(at / "m.onnx", TensorProto.UINT8, is_last=True)), "classification")],
    "two graphs of one name and two dtypes": lambda at: [
        (str(save_linear(at / f"{kind}.onnx", kind=kind)), "classification") for kind in (FLOAT, TensorProto.DOUBLE)
    ],
    "a graph of texts": lambda at: [(save_bert_graph(at / "m"), "classification")],
    "a graph of texts of int32 with types": lambda at: [
        (save_bert_graph(at / "m", TensorProto.INT32, takes_types=True), "classification")
    ],
    "a graph of texts below its tokenizer": lambda at: [(move_below(at / "m"), "classification")],
    "a graph beside a directory": lambda at: [
        (f"hf:{save_bert(at / 'a') and at / 'a'}", ""), (str(save_linear(at / "b.onnx", classes=5)), "classification"),
    ],
}  # fmt: skip


def move_below(folder: Path) -> str:
    path = Path(save_bert_graph(folder))
    (folder / "onnx").mkdir()
    return str(path.rename(folder / "onnx" / "model.onnx"))


def draft_all(folder: Path, sources: Sequence[Source]) -> tuple[EnsembleSpec | None, str]:
    """Write and check a folder; give its spec, where it has one, and what is missing."""
    drafts: list[MemberDraft] = [draft_member(f"m{n}", source, task) for n, (source, task) in enumerate(sources)]
    write_folder(folder, drafts, "")
    missing = check_folder(folder, drafts)
    return (None if missing else read_spec(folder)), missing


@pytest.mark.parametrize("write", SERVED.values(), ids=SERVED)
def test_what_is_drafted_is_loaded(tmp_path: Path, write: Callable[[Path], Sequence[Source]]) -> None:
    spec, missing = draft_all(tmp_path / "made", write(tmp_path))
    assert missing == ""
    assert spec is not None
    for name, member in spec.members.items():
        if member.output.kind == "probabilities":
            assert spec.task in ("classification", "multi_label"), name


def test_towers_are_loaded(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    drafts = draft_towers(f"hf:{tmp_path / 'clip'}")
    assert drafts is not None
    write_folder(tmp_path / "made", drafts, "")
    assert check_folder(tmp_path / "made", drafts) == ""


def test_a_graph_of_texts_is_drafted_as_one(tmp_path: Path) -> None:
    spec, _ = draft_all(tmp_path / "made", [(save_bert_graph(tmp_path / "m", takes_types=True), "classification")])
    assert spec is not None
    [text] = spec.members["m0"].input.values()
    assert (text.kind, getattr(text, "mask", None), getattr(text, "token_types", None)) == ("text", True, True)
    assert getattr(text, "max_tokens", None) == MAX_TOKENS


ASKED: dict[str, tuple[Callable[[Path], Source], str]] = {
    "sizes": (
        lambda at: (str(save_linear(at / "m.onnx", columns=("height", 8))), "tensor"),
        r"members\.m0\.input\.x\.shape: one sample's, of height, 8; the graph takes several",
    ),
    "an output": (
        lambda at: (save_two_outputs(at / "m.onnx"), "classification"),
        r"members\.m0\.output\.select: the name of an output, one of 'by_w', 'by_v'",
    ),
    "a length": (
        lambda at: (save_bert_graph(at / "m", has_config=False), "classification"),
        r"members\.m0\.input\.text\.max_tokens: the most tokens that the model takes",
    ),
    "a pooling": (lambda at: (save_encoder(at / "m", with_mean=False), ""), r"members\.m0\.pooling: found nothing"),
    "what logits are": (
        lambda at: (str(save_clipped(at / "m.onnx")), "classification"),
        r"members\.m0\.output\.kind: found 'logits'.*allowed: what it gives, 'probabilities'",
    ),
}


def save_clipped(path: Path) -> Path:
    """Write a graph whose probabilities no last operator shows."""
    half = numpy_helper.from_array(np.array([0.5], np.float32), "half")
    nodes = [helper.make_node("Mul", ["x", "half"], ["a"]), helper.make_node("Softmax", ["a"], ["b"])]
    nodes += [helper.make_node("Add", ["b", "b"], ["c"]), helper.make_node("Mul", ["c", "half"], ["y"])]
    values = [describe_value(name, FLOAT, ["n", 8]) for name in ("x", "y")]
    return save_nodes(path, nodes, values[:1], values[1:], [half])


@pytest.mark.parametrize(("write", "message"), ASKED.values(), ids=ASKED)
def test_what_no_source_says_is_asked_for_in_the_file_and_by_an_error(
    tmp_path: Path, write: Callable[[Path], Source], message: str
) -> None:
    _, missing = draft_all(tmp_path / "made", [write(tmp_path)])
    text = (tmp_path / "made" / "ensemble.toml").read_text()
    assert text.startswith("# Before it is served, this has to be mended:\n# members.m0.")
    assert missing.splitlines()[0] in text
    with pytest.raises(AssertionError, match=message):
        assert not missing, missing


REFUSED: dict[str, tuple[Callable[[Path], Source], str]] = {
    "a fixed batch": (lambda at: (str(save_linear(at / "m.onnx", rows=2)), "tensor"), r"\[2, 8\], for exactly 2; allowed: any"),
    "one number for a class": (lambda at: (str(save_linear(at / "m.onnx", classes=1)), "classification"), "--task multi_label"),
    "sigmoids for one class": (
        lambda at: (str(save_linear(at / "m.onnx", last="Sigmoid")), "classification"), "comes from a sigmoid.*--task multi_label",
    ),
    "no vector": (lambda at: (str(save_linear(at / "m.onnx", columns=(2, 8))), "embedding"), "task 'embedding': floats"),
    "texts of one length": (lambda at: (fix_length(at / "m"), "classification"), r"'input_ids' is tensor\(int64\) \['n', 7\]"),
    "a tokenizer that is none": (lambda at: (spoil_tokenizer(at / "m"), "classification"), "cannot be followed"),
}  # fmt: skip


def fix_length(folder: Path) -> str:
    source = save_bert_graph(folder)
    model = onnx.load(source)
    for node in model.graph.input:
        node.type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, source)
    return source


def spoil_tokenizer(folder: Path) -> str:
    source = save_bert_graph(folder)
    (folder / "tokenizer.json").write_text("[]")
    return source


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_not_drafted(tmp_path: Path, write: Callable[[Path], Source], message: str) -> None:
    with pytest.raises(CannotDraft, match=message):
        draft_all(tmp_path / "made", [write(tmp_path)])
    assert not (tmp_path / "made").exists()


def test_a_pickle_is_copied_where_nothing_else_has_the_weights(tmp_path: Path) -> None:
    draft: Any = draft_member("m0", save_pickle(tmp_path / "m"), "")
    write_folder(tmp_path / "made", [draft], "")
    assert (tmp_path / "made" / "m0" / "pytorch_model.bin").is_file()
    save_vit(tmp_path / "m")
    write_folder(tmp_path / "again", [draft], "")
    assert not (tmp_path / "again" / "m0" / "pytorch_model.bin").exists()

"""ONNX: graphs whose answers one can check by eye, and members that are served with them."""

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from tests.models import chance, number, write_members
from tests.servers import running
from tests.sources import find_wrong_in_threads, load_folder, load_source
from twinfer import Client
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.loaders import LoadedModel
from twinfer_server.trust import Trust

Inputs = dict[str, tuple[int, Sequence[str | int]]]


def save_graph(path: Path, nodes: Sequence[onnx.NodeProto], inputs: Inputs, outputs: Sequence[str]) -> None:
    """Write a model of these nodes; `inputs` are types and shapes, the outputs are float32 [samples, anything]."""
    takes = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["samples", None]) for name in outputs]
    graph = helper.make_graph(nodes, "graph", takes, gives)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def save_opinion(path: Path) -> None:
    """Write the model that gives x and -x as `logits`, and x itself as `same`."""
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("Concat", ["x", "negative"], ["logits"], axis=1),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    save_graph(path, nodes, {"x": (TensorProto.FLOAT, ["samples", 1])}, ["logits", "same"])


def save_text_model(path: Path, *names: str) -> None:
    """Write a model that sums the ids times the mask, plus 1000 for every token type, with its inputs in this order."""
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Constant", [], ["thousand"], value=helper.make_tensor("t", TensorProto.INT64, [1], [1000])),
        helper.make_node("Mul", ["token_type_ids", "thousand"], ["typed"]),
        helper.make_node("Add", ["masked", "typed"], ["all"]),
        helper.make_node("Constant", [], ["axes"], value=helper.make_tensor("a", TensorProto.INT64, [1], [1])),
        helper.make_node("ReduceSum", ["all", "axes"], ["total"]),
        helper.make_node("Cast", ["total"], ["sum"], to=TensorProto.FLOAT),
    ]
    kind = (TensorProto.INT64, ["samples", "tokens"])
    save_graph(path, nodes, dict.fromkeys(names, kind), ["sum"])


def describe_text(**keys: object) -> dict[str, object]:
    """Give the table of a member's inputs that has a text, with these further keys."""
    return {"text": {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 8} | keys}


def ask(model: LoadedModel, *arguments: Tensor) -> dict[str, Tensor]:
    """Call a loaded model as a member does."""
    with torch.inference_mode():
        answer = model.module(*arguments)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    save_opinion(folder / "opinion.onnx")
    save_text_model(folder / "text.onnx", "input_ids", "attention_mask", "token_type_ids")
    save_text_model(folder / "mixed.onnx", "token_type_ids", "attention_mask", "input_ids")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "cut.onnx").write_bytes((folder / "opinion.onnx").read_bytes()[:-20])
    (folder / "empty.onnx").write_bytes(b"")
    return folder


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5))
def test_a_graph_gives_its_outputs_by_name_for_any_number_of_samples(folder: Path, values: list[float]) -> None:
    x = torch.tensor(values).unsqueeze(1)
    answer = ask(load_source("opinion.onnx", folder), x)
    assert list(answer) == ["logits", "same"]
    assert torch.equal(answer["logits"], torch.cat([x, -x], dim=1))
    assert torch.equal(answer["same"], x)


def test_a_graph_is_data_and_is_never_captured(folder: Path) -> None:
    model = load_source("opinion.onnx", folder, Trust())
    content = (folder / "opinion.onnx").read_bytes()
    assert (model.loader, model.is_capturable, model.parameter_bytes) == ("onnx", False, len(content))
    assert model.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["text.onnx", "mixed.onnx"])
def test_a_text_finds_its_inputs_by_name_and_alone_has_token_types_of_0(folder: Path, name: str) -> None:
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    alone = load_source(name, folder, input=describe_text(mask=True))
    assert ask(alone, ids, mask)["sum"].flatten().tolist() == [6, 9]
    pair = load_source(name, folder, input=describe_text(mask=True, token_types=True))
    assert ask(pair, ids, mask, torch.tensor([[0, 0, 1], [0, 1, 1]]))["sum"].flatten().tolist() == [1006, 2009]


def test_what_is_no_text_goes_by_position(folder: Path) -> None:
    tensor = {"kind": "tensor", "dtype": "int64", "shape": [3]}
    model = load_source("mixed.onnx", folder, input={"one": tensor, "other": tensor})
    assert ask(model, torch.tensor([[1, 1, 0]]), torch.tensor([[4, 5, 6]]))["sum"].flatten().tolist() == [9]


def test_a_session_may_run_in_several_threads_at_once(folder: Path) -> None:
    model = load_source("opinion.onnx", folder)
    same = replace(model, module=lambda x: ask(model, x)["same"])
    assert find_wrong_in_threads(same, lambda x: x, width=1) == []


def test_a_graph_is_served_as_a_member_whose_output_is_picked_by_name(folder: Path, tmp_path: Path) -> None:
    members = write_members(tmp_path, {"by_name": "opinion.onnx", "by_position": "opinion.onnx"})
    (members / "opinion.onnx").write_bytes((folder / "opinion.onnx").read_bytes())
    spec = members / "ensemble.toml"
    by_name = '[members.by_name.output]\nselect = "logits"\n[fusion]'
    spec.write_text(spec.read_text().replace("[fusion]", by_name))
    with running(members) as server, Client(server.address) as client:
        answer = client.infer({"by_name": number(1), "by_position": number(-2)}, timeout=60)
        assert answer.prediction.best.probability == pytest.approx(1 - chance(1, -2), abs=1e-6)
        assert [member.loader for member in client.describe().members] == ["onnx", "onnx"]


def save_sorter(path: Path) -> None:
    """Write a classifier as scikit-learn's converters do: the names of the best classes, x and -x, and these in a map."""
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("Concat", ["x", "negative"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "best"], ["label"]),
        helper.make_node("ZipMap", ["scores"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    gives = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["samples"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["samples", 2]),
        helper.make_value_info("map", helper.make_sequence_type_proto(entry)),
    ]
    takes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["samples", 1])]
    names = onnx.numpy_helper.from_array(np.array(["yes", "no"], dtype=object), "names")
    graph = helper.make_graph(nodes, "graph", takes, gives, [names])
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), path)


@pytest.mark.parametrize("select", ['"scores"', "1"], ids=["by name", "by position"])
def test_outputs_beside_one_of_numbers_do_not_keep_it_from_being_served(tmp_path: Path, select: str) -> None:
    save_sorter(tmp_path / "sorter.onnx")
    spec = write_members(tmp_path, {"sorter": "sorter.onnx"}) / "ensemble.toml"
    spec.write_text(spec.read_text().replace("[fusion]", f"[members.sorter.output]\nselect = {select}\n[fusion]"))
    with running(tmp_path) as server, Client(server.address) as client:
        assert client.infer({"sorter": number(1)}, timeout=60).prediction.best.probability == pytest.approx(chance(1), abs=1e-6)


def test_an_output_of_strings_cannot_be_selected(tmp_path: Path) -> None:
    save_sorter(tmp_path / "sorter.onnx")
    folder = write_members(tmp_path, {"sorter": "sorter.onnx"})
    with pytest.raises(
        InvalidEnsemble, match=r"sorter\.output\.select: 0 finds no tensor; found outputs \['label', 'map', 'scores'\]"
    ):
        load_folder(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("cut.onnx", "found 'cut.onnx', which ONNX Runtime", id="truncated"),
        pytest.param("empty.onnx", "found 'empty.onnx', which ONNX Runtime", id="empty"),
    ],
)
def test_what_is_no_graph_is_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=f"^members.vision.model: .*{re.escape(message)}"):
        load_source(name, folder)


@pytest.mark.parametrize(
    ("name", "keys", "found"),
    [
        pytest.param("text.onnx", {}, "input_ids, attention_mask, token_type_ids', and the member gives 1", id="too few tensors"),
        pytest.param("unmasked.onnx", {"mask": True}, "input_ids, token_type_ids', and the member gives 2", id="no mask"),
    ],
)
def test_inputs_that_do_not_fit_the_graph_are_refused(folder: Path, name: str, keys: dict[str, object], found: str) -> None:
    add = [helper.make_node("Add", ["input_ids", "token_type_ids"], ["all"]), helper.make_node("Cast", ["all"], ["sum"], to=1)]
    kind = (TensorProto.INT64, ["samples", "tokens"])
    save_graph(folder / "unmasked.onnx", add, {"input_ids": kind, "token_type_ids": kind}, ["sum"])
    with pytest.raises(InvalidEnsemble, match=rf"model: found '{name}', whose inputs are '{found} tensors; allowed"):
        load_source(name, folder, input=describe_text(**keys))


def test_a_missing_onnx_runtime_is_answered_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidEnsemble, match=r"^members\.vision\.model: .*pip install 'twinfer\[onnx\]'"):
        load_source("opinion.onnx", folder)

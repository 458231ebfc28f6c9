"""ONNX: graphs whose answers one can check by eye, and members that are served with them."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx.parser
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.models import chance, number, write_members
from tests.servers import running
from tests.sources import find_wrong_in_threads, load_folder, load_source
from twinfer import Client
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.loaders import LoadedModel
from twinfer_server.trust import Trust

HEAD = '<ir_version: 9, opset_import: ["": 17, "ai.onnx.ml": 3]> '
OPINION = """(float[samples, 1] x) => (float[samples, classes] logits, float[samples, same] same) {
    negative = Neg(x)
    logits = Concat<axis = 1>(x, negative)
    same = Identity(x)
}"""
"""Gives x and -x as `logits`, and x itself as `same`."""
SUM = """=> (float[samples, one] sum) <int64[1] thousand = {1000}, int64[1] axes = {1}> {
    masked = Mul(input_ids, attention_mask)
    typed = Mul(token_type_ids, thousand)
    all = Add(masked, typed)
    total = ReduceSum(all, axes)
    sum = Cast<to = 1>(total)
}"""
"""Sums the ids times the mask, plus 1000 for every token type."""
UNMASKED = """=> (float[samples, tokens] sum) {
    all = Add(input_ids, token_type_ids)
    sum = Cast<to = 1>(all)
}"""
SORTER = """(float[samples, 1] x) => (string[samples] label, float[samples, 2] scores, seq(map(int64, float[])) map)
<string[2] names = {"yes", "no"}> {
    negative = Neg(x)
    scores = Concat<axis = 1>(x, negative)
    best = ArgMax<axis = 1, keepdims = 0>(scores)
    label = Gather(names, best)
    map = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1]>(scores)
}"""
"""Gives, as scikit-learn's converters do, the names of the best classes, x and -x, and these in a map."""


def save_graph(path: Path, text: str, *tokens: str) -> None:
    """Write the model that onnx's own language says; `tokens` are the names of its inputs int64 [samples, tokens]."""
    takes = f"({', '.join(f'int64[samples, tokens] {name}' for name in tokens)}) " if tokens else ""
    onnx.save(onnx.parser.parse_model(f"{HEAD}{path.stem} {takes}{text}"), path)


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
    save_graph(folder / "opinion.onnx", OPINION)
    save_graph(folder / "text.onnx", SUM, "input_ids", "attention_mask", "token_type_ids")
    save_graph(folder / "mixed.onnx", SUM, "token_type_ids", "attention_mask", "input_ids")
    save_graph(folder / "unmasked.onnx", UNMASKED, "input_ids", "token_type_ids")
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


@pytest.mark.parametrize("select", ['"scores"', "1"], ids=["by name", "by position"])
def test_outputs_beside_one_of_numbers_do_not_keep_it_from_being_served(tmp_path: Path, select: str) -> None:
    save_graph(tmp_path / "sorter.onnx", SORTER)
    spec = write_members(tmp_path, {"sorter": "sorter.onnx"}) / "ensemble.toml"
    spec.write_text(spec.read_text().replace("[fusion]", f"[members.sorter.output]\nselect = {select}\n[fusion]"))
    with running(tmp_path) as server, Client(server.address) as client:
        assert client.infer({"sorter": number(1)}, timeout=60).prediction.best.probability == pytest.approx(chance(1), abs=1e-6)


def test_an_output_of_strings_cannot_be_selected(tmp_path: Path) -> None:
    save_graph(tmp_path / "sorter.onnx", SORTER)
    message = r"sorter\.output\.select: 0 finds no tensor; found outputs \['label', 'map', 'scores'\]"
    with pytest.raises(InvalidEnsemble, match=message):
        load_folder(write_members(tmp_path, {"sorter": "sorter.onnx"}))


@pytest.mark.parametrize("name", ["cut.onnx", "empty.onnx"])
def test_what_is_no_graph_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(InvalidEnsemble, match=f"^members.vision.model: found '{name}', which ONNX Runtime"):
        load_source(name, folder)


@pytest.mark.parametrize(
    ("name", "keys", "found"),
    [
        pytest.param("text.onnx", {}, "input_ids, attention_mask, token_type_ids', and the member gives 1", id="too few tensors"),
        pytest.param("unmasked.onnx", {"mask": True}, "input_ids, token_type_ids', and the member gives 2", id="no mask"),
    ],
)
def test_inputs_that_do_not_fit_the_graph_are_refused(folder: Path, name: str, keys: dict[str, object], found: str) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"model: found '{name}', whose inputs are '{found} tensors; allowed"):
        load_source(name, folder, input=describe_text(**keys))


def test_a_missing_onnx_runtime_is_answered_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidEnsemble, match=r"^members\.vision\.model: .*pip install 'twinfer\[onnx\]'"):
        load_source("opinion.onnx", folder)


def test_onnx_runtime_reports_to_nobody_and_keeps_nothing_at_home(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import twinfer_server.loaders, onnxruntime"]
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(tmp_path)}
    subprocess.run(command, check=True, env=environment | {"XDG_CACHE_HOME": str(tmp_path)})
    assert list(tmp_path.rglob("*onnxruntime*")) == []

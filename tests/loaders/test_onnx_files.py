"""ONNX models in several files: all are found, kept inside the folder, copied and hashed."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import FLOAT, describe_value, make_weights, move_weights, point_weights, save_linear, save_nodes
from tests.sources import load_source
from twinfer_server.draft import CannotDraft, draft_member, write_folder
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.loaders import LoadedModel, onnx_graph
from twinfer_server.loaders.onnx_graph import parse_graph
from twinfer_server.trust import Trust

X = torch.linspace(-1, 1, 8)[None]
VECTOR = {"x": {"kind": "tensor", "dtype": "float32", "shape": [8]}}


def load_linear(folder: Path, model: str = "a.onnx") -> LoadedModel:
    return load_source(model, folder, Trust(), input=VECTOR)


def test_the_digest_and_the_size_are_those_of_all_files(tmp_path: Path) -> None:
    move_weights(save_linear(tmp_path / "a.onnx", seed=1), "a.onnx.data")
    first = load_linear(tmp_path)
    assert first.parameter_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    content = bytearray((tmp_path / "a.onnx.data").read_bytes())
    content[:4] = np.float32(100).tobytes()
    (tmp_path / "a.onnx.data").write_bytes(content)
    second = load_linear(tmp_path)
    assert first.digest != second.digest
    assert not torch.equal(first.module(X)["logits"], second.module(X)["logits"])  # type: ignore[index]
    assert load_linear(tmp_path).digest == second.digest


def test_files_that_are_links_into_the_folder_are_followed(tmp_path: Path) -> None:
    move_weights(save_linear(tmp_path / "blobs" / "a.onnx", seed=1), "a.data")
    (tmp_path / "blobs" / "a.onnx").rename(tmp_path / "blobs" / "0")
    (tmp_path / "blobs" / "a.data").rename(tmp_path / "blobs" / "1")
    for name, blob in (("a.onnx", "0"), ("a.data", "1")):
        (tmp_path / name).symlink_to(f"blobs/{blob}")
    assert load_linear(tmp_path).digest


PLACES = {
    "in the folder above": ("../out.data", "without '..'"),
    "by way of the folder above": ("sub/../a.data", "without '..'"),
    "anywhere": ("/etc/passwd", "one from the graph's own folder"),
    "by a path of Windows": ("sub\\a.data", "without '..' and backslashes"),
    "behind a NUL": ("a.data\0", "one from the graph's own folder"),
    "nowhere": ("", "one from the graph's own folder"),
    "in a folder": ("sub", "no such file: 'sub'"),
    "where there is none": ("missing.data", "no such file: 'missing.data'"),
    "behind a link that leaves": ("link.data", "the path leaves the ensemble folder: 'link.data'"),
    "in memory": ("*/_ORT_MEM_ADDR_/*", "no such file"),
}


@pytest.mark.parametrize(("location", "message"), PLACES.values(), ids=PLACES)
def test_tensors_that_are_not_beside_the_graph_are_refused_by_name(tmp_path: Path, location: str, message: str) -> None:
    folder = tmp_path / "folder"
    move_weights(save_linear(folder / "a.onnx"), "a.data")
    (folder / "sub").mkdir()
    for place in (tmp_path / "out.data", folder / "sub" / "other.data"):
        place.write_bytes((folder / "a.data").read_bytes())
    (folder / "link.data").symlink_to(tmp_path / "out.data")
    point_weights(folder / "a.onnx", location)
    with pytest.raises(InvalidEnsemble, match=rf"^members\.vision\.model: 'a\.onnx' keeps tensors in another file: .*{message}"):
        load_linear(folder)
    if "link" not in location:
        with pytest.raises(CannotDraft, match=r"^member one: 'a\.onnx' keeps tensors in"):
            draft_member("one", str(folder / "a.onnx"), "classification")


@pytest.mark.parametrize("name", [b"a.data", b"logits", b"w", b"rows"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, name: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = move_weights(save_linear(tmp_path / "a.onnx"), "a.data")
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"\xff"))
    with pytest.raises(InvalidEnsemble, match=r"^members\.vision\.model: .*a\.onnx"):
        load_linear(tmp_path)
    with pytest.raises(CannotDraft, match=r"^member one: "):
        draft_member("one", str(path), "classification")
    assert capfd.readouterr().out == ""


def test_a_data_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    move_weights(save_linear(tmp_path / "a.onnx"), "a.data")
    (tmp_path / "a.data").write_bytes((tmp_path / "a.data").read_bytes()[:-8])
    with pytest.raises(InvalidEnsemble, match=r"which ONNX Runtime .* cannot read"):
        load_linear(tmp_path)


def make_external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def test_tensors_are_found_wherever_a_graph_may_have_them() -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=make_external("c", "constant"))],
        "inner",
        [],
        [],
        [make_external("i", "inner")],
    )
    sparse = helper.make_sparse_tensor(make_external("v", "values"), make_external("d", "indices"), [4])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    listed = helper.make_node("Anything", ["x"], ["z"], several=[make_external("s", "several")], domain="odd")
    graph = helper.make_graph([branch, listed], "outer", [], [], [make_external("o", "outer")], sparse_initializer=[sparse])
    function = helper.make_function(
        "odd", "Function", ["x"], ["y"], [helper.make_node("Constant", [], ["y"], value=make_external("f", "function"))],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = helper.make_model(graph, functions=[function])
    wanted = ("constant", "function", "indices", "inner", "outer", "several", "values")
    assert parse_graph(onnx, model.SerializeToString()).locations == wanted


def test_a_file_that_changes_while_it_is_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move_weights(save_linear(tmp_path / "a.onnx"), "a.data")
    open_session = onnxruntime.InferenceSession

    def open_and_change(*arguments: object, **options: object) -> object:
        session = open_session(*arguments, **options)
        (tmp_path / "a.data").write_bytes(make_weights(9, 8, 3).tobytes())
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_and_change)
    with pytest.raises(InvalidEnsemble, match=r"whose file 'a\.data' changed while it was loaded; allowed: files that stay"):
        load_linear(tmp_path)


def test_two_graphs_whose_data_files_have_one_name_are_copied_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        move_weights(save_linear(tmp_path / name / "model.onnx", seed=seed), "model.onnx.data")
    sources = {name: str(tmp_path / name / "model.onnx") for name in "ab"}
    write_folder(tmp_path / "made", [draft_member(name, source, "classification") for name, source in sources.items()], "")
    copied = sorted(str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*.*"))
    assert copied == ["a/model.onnx", "a/model.onnx.data", "b/model.onnx", "b/model.onnx.data", "ensemble.toml"]
    for name, source in sources.items():
        expected = onnxruntime.InferenceSession(source).run(None, {"x": X.numpy()})[0]
        answer = load_linear(tmp_path / "made", f"{name}/model.onnx").module(X)
        assert np.array_equal(answer["logits"].numpy(), expected)  # type: ignore[index]


def test_data_in_folders_below_and_shared_by_tensors_is_copied_once(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(make_weights(seed, 8, 3), name) for seed, name in enumerate("wv")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("MatMul", ["x", "v"], ["z"])]
    nodes.append(helper.make_node("Add", ["y", "z"], ["logits"]))
    inputs, outputs = [describe_value("x", FLOAT, ["n", 8])], [describe_value("logits", FLOAT, ["n", 3])]
    path = save_nodes(tmp_path / "net.onnx", nodes, inputs, outputs, weights)
    (tmp_path / "sub").mkdir()
    move_weights(path, "sub/my weights.bin")
    write_folder(tmp_path / "made", [draft_member("one", str(path), "classification")], "")
    assert (tmp_path / "made" / "one" / "sub" / "my weights.bin").is_file()
    assert load_linear(tmp_path / "made", "one/net.onnx").digest


def test_a_graph_in_one_file_keeps_the_digest_of_that_file(tmp_path: Path) -> None:
    content = save_linear(tmp_path / "a.onnx").read_bytes()
    assert load_linear(tmp_path).digest == hashlib.sha256(content).hexdigest()


def test_a_missing_onnx_package_is_answered_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_linear(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InvalidEnsemble, match=r"pip install 'twinfer\[onnx\]'"):
        load_linear(tmp_path)
    with pytest.raises(CannotDraft, match=r"pip install 'twinfer\[onnx\]'"):
        draft_member("one", str(tmp_path / "a.onnx"), "classification")


def test_what_protobuf_reads_as_an_empty_graph_is_still_refused(tmp_path: Path) -> None:
    assert onnx_graph.parse_graph(onnx, b"").locations == ()
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InvalidEnsemble, match="cannot read"):
        load_linear(tmp_path)

"""`twinfer init`: the folder that it writes is served as it is, and answers what the models' own library answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

from tests.models import as_any
from tests.pictures import encode
from tests.pretrained import make_image, save, save_bert, save_clip, save_siglip, save_vit
from tests.servers import running
from twinfer import Client
from twinfer_server.cli import load_command
from twinfer_server.draft import CannotDraft, draft_member, draft_towers, write_folder
from twinfer_server.spec import read_spec

TEXTS = ["word1 word2 word3", "word4 word5", "word6"]


def draft(folder: Path, sources: dict[str, str], method: str = "", task: str = "") -> Path:
    write_folder(folder, [draft_member(name, source, task) for name, source in sources.items()], method)
    return folder


def test_a_picture_and_a_text_classifier_become_a_pair_that_is_served_without_trust(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    save_bert(tmp_path / "bert")
    folder = tmp_path / "my-pair"
    members = [f"--member=image=hf:{tmp_path / 'vit'}", f"--member=text=hf:{tmp_path / 'bert'}"]
    result = CliRunner().invoke(load_command("init"), [str(folder), *members, "--fusion=weighted_mean"])
    assert result.exit_code == 0, result.output
    assert f"next: twinfer validate {folder}" in result.stdout
    spec = read_spec(folder)
    assert (spec.name, spec.task, spec.fusion.method) == ("my-pair", "classification", "weighted_mean")
    assert (folder / "labels.txt").read_text().splitlines() == [f"LABEL_{number}" for number in range(5)]
    with running(folder) as server, Client(server.address, attempts=1) as client:
        answer = client.infer({"image": encode(make_image(width=36, height=36)), "text": TEXTS[0]})
        assert {name: str(member.state) for name, member in answer.members.items()} == {"image": "OK", "text": "OK"}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_one_directory_of_two_towers_becomes_a_similarity_that_matches_like_the_library(tmp_path: Path, kind: str) -> None:
    model = (save_clip if kind == "clip" else save_siglip)(tmp_path / kind)
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
        if kind == "siglip":
            model.logit_bias.fill_(-0.5)
    save(tmp_path / kind, model)
    towers = draft_towers(f"hf:{tmp_path / kind}")
    assert towers is not None
    write_folder(tmp_path / "towers", towers, "")
    with running(tmp_path / "towers") as server, Client(server.address, attempts=1) as client:
        matches = client.infer({"image": encode(make_image(width=36, height=36)), "text": TEXTS}).prediction.matches
    expected = probabilities_of(tmp_path / kind, model, TEXTS)
    assert [match.probability for match in matches] == pytest.approx(expected, abs=1e-3)


def probabilities_of(directory: Path, model: Any, texts: Sequence[str]) -> list[float]:
    """What the library makes of the picture and the texts."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    is_siglip = hasattr(model, "logit_bias")
    padding: Any = "max_length" if is_siglip else True
    tokens = tokenizer(list(texts), return_tensors="pt", padding=padding, truncation=True)
    with torch.no_grad():
        pixels = processor(make_image(width=36, height=36), return_tensors="pt")
        names = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
        logits = model(**pixels, **{name: tokens[name] for name in names}).logits_per_image[0]
        found: list[float] = (logits.sigmoid() if is_siglip else logits.softmax(-1)).tolist()
    return found


def write_onnx(path: Path, rows: str | int = "rows", columns: int = 3) -> Path:
    """Write a graph that answers its input as it is: float32 [rows, columns]."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, columns]) for name in ("x.1", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x.1"], ["y"])], "identity", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_graph_says_what_it_takes_and_the_user_says_what_it_gives(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    folder = draft(tmp_path / "graphs", {"one": str(path), "other": str(path)}, task="classification")
    with running(folder) as server, Client(server.address, attempts=1) as client:
        tensor = as_any(torch.tensor([0.0, 2.0, 0.0]).numpy())
        assert client.infer({"x_1": tensor}).prediction.best.index == 1


def test_inputs_of_one_name_and_two_shapes_get_names_of_their_own(tmp_path: Path) -> None:
    sources = {f"of{columns}": str(write_onnx(tmp_path / f"{columns}.onnx", columns=columns)) for columns in (3, 4)}
    folder = draft(tmp_path / "graphs", sources, task="embedding")
    with running(folder) as server, Client(server.address, attempts=1) as client:
        row = {f"of{columns}_x_1": as_any(torch.ones(columns).numpy()) for columns in (3, 4)}
        assert len(client.infer(row).prediction.embedding) == 7


def test_the_output_of_a_graph_is_the_first_of_floats(tmp_path: Path) -> None:
    model = onnx.load(write_onnx(tmp_path / "model.onnx"))
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["x.1"], ["label"], axis=1, keepdims=0))
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["rows"]))
    onnx.save(model, tmp_path / "model.onnx")
    folder = draft(tmp_path / "graph", {"one": str(tmp_path / "model.onnx")}, task="tensor")
    assert read_spec(folder).members["one"].output.select == "y"


def test_classifiers_of_several_labels_become_an_ensemble_of_that_task(tmp_path: Path) -> None:
    for name, write in (("vit", save_vit), ("bert", save_bert)):
        model = write(tmp_path / name)
        model.config.problem_type = "multi_label_classification"
        model.config.save_pretrained(tmp_path / name)
    folder = draft(tmp_path / "several", {"image": f"hf:{tmp_path / 'vit'}", "text": f"hf:{tmp_path / 'bert'}"})
    assert read_spec(folder).task == "multi_label"
    with running(folder) as server, Client(server.address, attempts=1) as client:
        answer = client.infer({"image": encode(make_image(width=36, height=36)), "text": TEXTS[0]})
        assert len(answer.prediction.labels) == 5
    write_onnx(tmp_path / "model.onnx")
    folder = draft(tmp_path / "graph", {"one": str(tmp_path / "model.onnx")}, task="multi_label")
    assert read_spec(folder).task == "multi_label"


def test_classes_of_one_name_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    model = save_vit(tmp_path / "vit")
    model.config.id2label = dict(enumerate(["crane", "a\nb", "crane", "", "dog"]))
    model.config.save_pretrained(tmp_path / "vit")
    folder = draft(tmp_path / "one", {"image": f"hf:{tmp_path / 'vit'}"})
    assert (folder / "labels.txt").read_text().splitlines() == ["crane (0)", "a b", "crane (2)", "3", "dog"]


def test_every_line_of_the_file_that_needs_a_word_has_one(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    folder = draft(tmp_path / "one", {"image": f"hf:{tmp_path / 'vit'}"})
    text = (folder / "ensemble.toml").read_text()
    for key in ("version", "labels", "policy", "kind", "max_batch_size"):
        assert any(line.startswith(f"{key} = ") and "#" in line for line in text.splitlines()), key
    assert f"twinfer validate {folder}" in text


def test_models_of_different_tasks_are_refused(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    path = write_onnx(tmp_path / "model.onnx")
    with pytest.raises(CannotDraft, match=r"different tasks.*image: classification, other: embedding"):
        draft(tmp_path / "folder", {"image": f"hf:{tmp_path / 'vit'}", "other": str(path)}, task="embedding")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("source", "task", "message"),
    [
        pytest.param("model.pt2", "classification", "hf:DIR or FILE.onnx", id="a program"),
        pytest.param("hf:nowhere", "classification", "config.json cannot be read", id="a directory that is not there"),
        pytest.param("nowhere.onnx", "classification", "no such file", id="a graph that is not there"),
        pytest.param("model.onnx", "", "--task", id="a graph without a task"),
    ],
)
def test_a_source_that_says_too_little_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, task: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "model.onnx")
    with pytest.raises(CannotDraft, match=message):
        draft(tmp_path / "folder", {"one": source}, task=task)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("content", [b"", b"junk"], ids=["empty", "something else"])
def test_a_graph_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CannotDraft, match=r"^member one: .*which ONNX Runtime .* cannot read .*; allowed: an ONNX model$"):
        draft(tmp_path / "folder", {"one": str(tmp_path / "model.onnx")}, task="tensor")
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_has_something_in_it_is_left_alone(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    with pytest.raises(CannotDraft, match="not empty"):
        draft(tmp_path, {"one": str(path)}, task="tensor")


def test_a_method_that_does_not_fuse_such_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotDraft, match=r"--fusion: found 'nms'; allowed for task 'embedding': concatenation"):
        draft(tmp_path / "folder", {"one": str(write_onnx(tmp_path / "model.onnx"))}, method="nms", task="embedding")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["one", "one"], "found 'one' twice", id="twice"),
        pytest.param(["A b"], "found the name 'A b'", id="one that no file can have"),
    ],
)
def test_names_that_no_ensemble_can_have_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    members = [word for name in names for word in ("--member", f"{name}={path}")]
    result = CliRunner().invoke(load_command("init"), [str(tmp_path / "folder"), *members, "--task", "embedding"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())

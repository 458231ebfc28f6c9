"""Code planted wherever a pickle or Python may lie in a folder: nothing of it runs without trust."""

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.graphs import save_linear
from tests.pretrained import save_bert, save_vit
from tests.reference.damaged_files import make_rows, read_for_load, read_labelled, save_sentences, write_member
from tests.sources import load_folder
from tests.test_trust import Bait
from twinfer_server.draft import CannotDraft, draft_member
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fit.labels import InvalidRows
from twinfer_server.trust import Trust

BESIDE = (
    "pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.joblib", "model.pkl", "vocab.pkl", "tf_model.h5", "model.pt2",
    "adapter_model.bin", "rust_model.ot",
)  # fmt: skip


def plant(path: Path, trace: Path) -> None:
    """Write a pickle, in torch's own archive where torch would read it, that makes the folder `trace`."""
    if path.suffix in (".bin", ".pt"):
        torch.save(Bait(trace), path)
    else:
        path.write_bytes(pickle.dumps(Bait(trace)))


def plant_python(directory: Path, trace: Path, file: str, name: str) -> None:
    """Write a module, and name it as the library's files name code of their own."""
    (directory / "planted.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).mkdir()\nclass Planted: pass\n")
    document = json.loads((directory / file).read_text())
    (directory / file).write_text(json.dumps(document | {"auto_map": {name: "planted.Planted"}}))


def refuse_or_load(folder: Path) -> None:
    with suppress(InvalidEnsemble):
        load_folder(folder, Trust())


def test_the_bait_is_one(tmp_path: Path) -> None:
    plant(tmp_path / "a.bin", tmp_path / "trace")
    torch.load(tmp_path / "a.bin", weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", BESIDE)
def test_a_pickle_beside_the_weights_is_not_read(tmp_path: Path, name: str) -> None:
    save_bert(tmp_path / "m")
    write_member(tmp_path, "hf:m", "text")
    plant(tmp_path / "m" / name, tmp_path / "trace")
    refuse_or_load(tmp_path)
    assert not (tmp_path / "trace").exists()


def plant_alone(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    (folder / "m" / "model.safetensors").unlink()
    plant(folder / "m" / "pytorch_model.bin", trace)


def plant_part(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    (folder / "m" / "model.safetensors").unlink()
    plant(folder / "m" / "part.bin", trace)
    (folder / "m" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "part.bin"}}))


def plant_named_safetensors(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    plant(folder / "m" / "model.safetensors", trace)


def plant_part_of_safetensors(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    (folder / "m" / "model.safetensors").unlink()
    plant(folder / "m" / "part.bin", trace)
    (folder / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part.bin"}}))


def plant_dense(folder: Path, trace: Path) -> None:
    save_sentences(folder / "m")
    (folder / "m" / "2_Dense" / "model.safetensors").unlink()
    plant(folder / "m" / "2_Dense" / "pytorch_model.bin", trace)


def plant_module(folder: Path, trace: Path) -> None:
    save_sentences(folder / "m")
    plant_python(folder / "m", trace, "2_Dense/config.json", "Dense")
    modules = json.loads((folder / "m" / "modules.json").read_text())
    modules[2]["type"] = "planted.Planted"
    (folder / "m" / "modules.json").write_text(json.dumps(modules))


def plant_model(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    plant_python(folder / "m", trace, "config.json", "AutoModelForSequenceClassification")


def plant_configuration(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    plant_python(folder / "m", trace, "config.json", "AutoConfig")


def plant_tokenizer(folder: Path, trace: Path) -> None:
    save_bert(folder / "m")
    plant_python(folder / "m", trace, "tokenizer_config.json", "AutoTokenizer")


def plant_image_processor(folder: Path, trace: Path) -> None:
    save_vit(folder / "m")
    plant_python(folder / "m", trace, "preprocessor_config.json", "AutoImageProcessor")


PLANTERS: list[tuple[Callable[[Path, Path], None], str, str]] = [
    (plant_alone, "text", "classification"), (plant_part, "text", "classification"),
    (plant_named_safetensors, "text", "classification"), (plant_part_of_safetensors, "text", "classification"),
    (plant_dense, "text", "embedding"), (plant_module, "text", "embedding"), (plant_model, "text", "classification"),
    (plant_configuration, "text", "classification"), (plant_tokenizer, "text", "classification"),
    (plant_image_processor, "image", "classification"),
]  # fmt: skip


@pytest.mark.parametrize(("planter", "kind", "task"), PLANTERS)
def test_nothing_planted_in_a_directory_runs(tmp_path: Path, planter: Callable[[Path, Path], None], kind: str, task: str) -> None:
    planter(tmp_path, tmp_path / "trace")
    write_member(tmp_path, "hf:m", kind, task)
    refuse_or_load(tmp_path)
    with suppress(CannotDraft):
        draft_member("m", f"hf:{tmp_path / 'm'}", "")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "name", ["a.pt2", "a.pt", "a.ts", "a.safetensors", "a.onnx", "a.joblib", "a.pkl", "a.npy", "python:a.py:f", "python:a:f"]
)
def test_no_pickle_that_a_member_names_runs(tmp_path: Path, name: str) -> None:
    write_member(tmp_path, name, "vector")
    file = "a.py" if name.startswith("python") else name
    plant(tmp_path / file, tmp_path / "trace")
    with pytest.raises(InvalidEnsemble):
        load_folder(tmp_path, Trust())
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("key", ["fitted", "projection", "texts", "labels"])
def test_no_pickle_that_the_fusion_names_runs(tmp_path: Path, key: str) -> None:
    save_linear(tmp_path / "a.onnx")
    write_member(tmp_path, "a.onnx", "vector")
    plant(tmp_path / "planted", tmp_path / "trace")
    text = (tmp_path / "ensemble.toml").read_text()
    (tmp_path / "ensemble.toml").write_text(f'labels = "planted"\n{text}' if key == "labels" else f'{text}\n{key} = "planted"\n')
    with pytest.raises(InvalidEnsemble):
        load_folder(tmp_path, Trust())
    assert not (tmp_path / "trace").exists()


def test_no_pickle_in_an_array_runs(tmp_path: Path) -> None:
    make_rows(tmp_path)
    np.save(tmp_path / "x.npy", np.array([Bait(tmp_path / "trace")], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRows, match=r"rows\.csv, row 1, column 'x'"):
        read_labelled(tmp_path)
    with pytest.raises(ValueError, match=r"rows\.csv, row 1, column 'x'"):
        read_for_load(tmp_path)
    assert not (tmp_path / "trace").exists()

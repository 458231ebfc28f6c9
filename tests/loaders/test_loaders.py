"""Loaders: every way to name a model gives one that computes, or an error that says what would."""

import re
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.sources import load_source as load
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.loaders import LOADERS

KEY = "members.vision.model"
MODULE = """
import torch
from dataclasses import dataclass

@dataclass
class Options:
    factor: float = 2.0

class Doubler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(Options().factor))
        self.noise = torch.nn.Dropout(0.9)
    def forward(self, x):
        return self.noise(x * self.factor)

class Zoo:
    doubler = Doubler()

def make():
    return Doubler()

def make_function():
    return lambda x: x + x

def needs(argument):
    return Doubler()

def nothing():
    return None

number = 7
"""


class Shift(nn.Module):
    """Adds a parameter (12 bytes), a buffer (12 bytes), a constant (12 bytes) and the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0, 20.0, 30.0]))
        self.offset: Tensor
        self.register_buffer("offset", torch.tensor([1.0, 1.0, 1.0]))
        self.constant = torch.tensor([100.0, 100.0, 100.0])
        self.noise = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(3, device=x.device)
        moved: Tensor = self.noise(x + self.weight) + self.offset + self.constant + positions
        return moved


def export(model: nn.Module, path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=1024)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3),), dynamic_shapes=({0: rows},)), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(Shift().eval(), tmp_path / "shift.pt2")
    export(Shift().train(), tmp_path / "training.pt2")
    export(nn.BatchNorm1d(3).train(), tmp_path / "statistics.pt2")
    (tmp_path / "models.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of order')\n")
    (tmp_path / "weights.bin").write_bytes(b"weights")
    (tmp_path / "empty.pt2").write_bytes(b"")
    (tmp_path / "text.pt2").write_text("not a program")
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "shift.pt2").read_bytes()[:-100])
    (tmp_path / "outside.pt2").symlink_to("/dev/null")
    return tmp_path


def test_an_exported_program_computes_what_its_model_did_at_any_number_of_rows(folder: Path) -> None:
    model = load("shift.pt2", folder)
    with torch.inference_mode():
        for rows in (1, 2, 5):
            answer = model.module(torch.zeros(rows, 3))
            assert torch.equal(torch.as_tensor(answer), torch.tensor([[111.0, 122.0, 133.0]] * rows))


def test_an_exported_program_says_its_loader_its_size_and_its_digest(folder: Path) -> None:
    model = load("shift.pt2", folder)
    assert (model.loader, model.parameter_bytes, model.is_capturable) == ("pt2", 36, True)
    assert re.fullmatch("[0-9a-f]{64}", model.digest)


def test_a_loaded_model_asks_for_no_gradient(folder: Path) -> None:
    for source in ("shift.pt2", "python:models.py:make"):
        answer = load(source, folder).module(torch.ones(1, 3))
        assert not torch.as_tensor(answer).requires_grad


def test_an_exported_program_may_run_in_several_threads_at_once(folder: Path) -> None:
    model = load("shift.pt2", folder)
    wrong: list[str] = []
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        with torch.inference_mode():
            for turn in range(50):
                x = torch.full((1 + turn % 4, 3), float(thread))
                answer = torch.as_tensor(model.module(x))
                if not torch.equal(answer, x + torch.tensor([111.0, 122.0, 133.0])):
                    wrong.append(f"thread {thread}, turn {turn}: {answer}")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "attribute", ["Doubler", "make", "make_function", "Zoo.doubler"], ids=["class", "factory", "function", "instance"]
)
def test_python_gives_a_model_from_a_file_of_the_folder(folder: Path, attribute: str) -> None:
    model = load(f"python:models.py:{attribute}", folder)
    assert torch.equal(torch.as_tensor(model.module(torch.ones(2, 3))), torch.full((2, 3), 2.0))
    assert model.loader == "python"
    assert model.parameter_bytes == (0 if attribute == "make_function" else 4)


def test_python_gives_a_model_from_an_installed_module(folder: Path) -> None:
    model = load("python:torch.nn:Identity", folder)
    assert torch.equal(torch.as_tensor(model.module(torch.ones(1))), torch.ones(1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            "weights.bin",
            "no loader for 'weights.bin'; allowed: ....pt2, ....pt, ",
            id="unknown suffix",
        ),
        pytest.param(
            "mlflow:./vit",
            "no loader for 'mlflow:./vit'; allowed: ....pt2, ....pt, ",
            id="unknown prefix",
        ),
        pytest.param("missing.pt2", "no such file: 'missing.pt2'; allowed: a file inside", id="missing file"),
        pytest.param("../model.pt2", "the path leaves the ensemble folder: '../model.pt2'", id="path that leaves"),
        pytest.param("/tmp/model.pt2", "the path leaves the ensemble folder", id="absolute path"),
        pytest.param("outside.pt2", "the path leaves the ensemble folder", id="link that leaves"),
        pytest.param("\0.pt2", "no such file", id="NUL in the name"),
        pytest.param("a" * 5000 + ".pt2", "no such file: 'aaa", id="name of 5000 letters"),
        pytest.param("empty.pt2", "found 'empty.pt2', which torch", id="empty file"),
        pytest.param("text.pt2", "allowed: a program saved by torch.export.save", id="text file"),
        pytest.param("cut.pt2", "allowed: a program saved by torch.export.save", id="truncated file"),
        pytest.param("training.pt2", "exported in training mode (aten.dropout", id="dropout that is on"),
        pytest.param("statistics.pt2", "exported in training mode (aten.batch_norm", id="statistics that mix rows"),
        pytest.param("python:models.py", "allowed: python:module:attribute", id="no attribute"),
        pytest.param("python::x", "allowed: python:module:attribute", id="no module"),
        pytest.param("python:no_such_module_anywhere:x", "ModuleNotFoundError", id="missing module"),
        pytest.param("python:gone.py:x", "no such file: 'gone.py'", id="missing Python file"),
        pytest.param("python:../models.py:x", "the path leaves the ensemble folder", id="Python path that leaves"),
        pytest.param("python:models.py:gone", "has no attribute 'gone'", id="missing attribute"),
        pytest.param("python:broken.py:x", "RuntimeError: out of order", id="module that raises"),
        pytest.param("python:models.py:needs", "missing 1 required positional argument", id="factory with arguments"),
        pytest.param("python:models.py:nothing", "gives 'NoneType'", id="factory that gives nothing"),
        pytest.param("python:models.py:number", "'int' object is not callable", id="number"),
    ],
)
def test_a_source_that_gives_no_model_is_refused_naming_the_key(folder: Path, source: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=re.escape(message)) as refusal:
        load(source, folder)
    assert str(refusal.value).startswith(f"{KEY}: ")
    assert len(str(refusal.value)) < 1500


def test_the_table_has_the_loaders_that_are_tested() -> None:
    assert set(LOADERS) == {".pt2", ".pt", ".ts", ".safetensors", ".onnx", "python:", "hf:"}

"""Python models, and what every way to name a model has in common."""

import re
from pathlib import Path

import pytest
import torch

from tests.sources import compute, load_source
from twinfer_server.errors import InvalidEnsemble

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of order')\n")
    (tmp_path / "weights.bin").write_bytes(b"weights")
    (tmp_path / "outside.pt2").symlink_to("/dev/null")
    return tmp_path


@pytest.mark.parametrize(
    ("attribute", "size"),
    [("Doubler", 4), ("make", 4), ("Zoo.doubler", 4), ("make_function", 0)],
    ids=["a class", "a factory", "an instance", "a function"],
)
def test_python_gives_a_model_from_a_file_of_the_folder(folder: Path, attribute: str, size: int) -> None:
    model = load_source(f"python:models.py:{attribute}", folder)
    answer = model.module(torch.ones(2, 3))
    assert isinstance(answer, torch.Tensor)
    assert torch.equal(answer, torch.full((2, 3), 2.0))
    assert not answer.requires_grad
    assert (model.loader, model.parameter_bytes, model.digest) == ("python", size, "")


def test_python_gives_a_model_from_an_installed_module(folder: Path) -> None:
    assert torch.equal(compute(load_source("python:torch.nn:Identity", folder), torch.ones(1)), torch.ones(1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("weights.bin", "no loader for 'weights.bin'; allowed: ....pt2, ....pt, ", id="unknown suffix"),
        pytest.param("mlflow:./vit", "no loader for 'mlflow:./vit'; allowed: ....pt2, ....pt, ", id="unknown prefix"),
        pytest.param("missing.pt2", "no such file: 'missing.pt2'; allowed: a file inside", id="missing"),
        pytest.param("missing.onnx", "no such file: 'missing.onnx'; allowed: a file inside", id="missing data"),
        pytest.param("../model.pt2", "the path leaves the ensemble folder: '../model.pt2'", id="path that leaves"),
        pytest.param("../model.onnx", "the path leaves the ensemble folder: '../model.onnx'", id="path that leaves, of data"),
        pytest.param("outside.pt2", "the path leaves the ensemble folder", id="link that leaves"),
        pytest.param("\0.pt2", "no such file", id="NUL in the name"),
        pytest.param("a" * 5000 + ".pt2", "no such file: 'aaa", id="name of 5000 letters"),
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
    with pytest.raises(InvalidEnsemble, match=f"^members.vision.model: .*{re.escape(message)}") as refusal:
        load_source(source, folder)
    assert len(str(refusal.value)) < 1500

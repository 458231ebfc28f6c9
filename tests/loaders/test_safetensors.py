"""Weights: an architecture named beside them takes all of them, or says what does not fit."""

import hashlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from tests.sources import compute, load_source
from twinfer_server.errors import InvalidEnsemble, UntrustedCode
from twinfer_server.trust import Trust


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, bias=False)
        self.outer = nn.Linear(3, 3, bias=False)
        self.outer.weight = self.inner.weight
        self.noise = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.noise(self.outer(self.inner(x)))
        return answer


ARCHITECTURE = f"""
from torch import Tensor, nn

{inspect.getsource(Tied)}

def double():
    return Tied().double()

def function():
    return lambda x: x
"""
PYTHON = "python:net.py:Tied"


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied().eval()


@pytest.fixture
def folder(tmp_path: Path, model: Tied) -> Path:
    (tmp_path / "net.py").write_text(ARCHITECTURE)
    save_model(model, str(tmp_path / "net.safetensors"))
    save_file({"inner.weight": model.inner.weight.detach().half()}, tmp_path / "half.safetensors")
    save_file({"other.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    save_file({"inner.weight": torch.zeros(2, 2)}, tmp_path / "small.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-1])
    return tmp_path


def test_weights_go_into_the_architecture_that_the_file_names(folder: Path, model: Tied) -> None:
    loaded = load_source("net.safetensors", folder, architecture=PYTHON)
    x = torch.randn(5, 3)
    assert torch.equal(compute(loaded, x), model(x))
    assert (loaded.loader, loaded.parameter_bytes, loaded.is_capturable) == ("safetensors", 36, True)
    assert loaded.digest == "", "no digest of the weights speaks for the program beside them"


@pytest.mark.parametrize(
    ("name", "architecture"), [("half.safetensors", "Tied"), ("net.safetensors", "double")], ids=["weights", "architecture"]
)
def test_whatever_the_precision_on_disk_it_computes_in_float32(folder: Path, model: Tied, name: str, architecture: str) -> None:
    loaded = load_source(name, folder, architecture=f"python:net.py:{architecture}")
    answer = compute(loaded, torch.ones(1, 3))
    assert answer.dtype == torch.float32
    assert torch.allclose(answer, model(torch.ones(1, 3)), atol=2e-3)


def test_weights_are_data_and_their_python_architecture_a_program(folder: Path) -> None:
    with pytest.raises(UntrustedCode, match=r"^members\.vision\.architecture: 'python:net\.py:Tied' is Python code"):
        load_source("net.safetensors", folder, Trust(), architecture=PYTHON)


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [
        pytest.param("net.safetensors", None, "architecture: found nothing; allowed beside weights: ", id="no architecture"),
        pytest.param("net.safetensors", "resnet18", "architecture: found 'resnet18', which names none", id="no prefix"),
        pytest.param("net.safetensors", "python:net.py:gone", "has no attribute 'gone'", id="missing architecture"),
        pytest.param("net.safetensors", "python:net.py:function", "which gives function; allowed: ", id="no module"),
        pytest.param("other.safetensors", PYTHON, "Missing key(s) in state_dict", id="other names"),
        pytest.param("small.safetensors", PYTHON, "size mismatch for inner.weight", id="other shapes"),
        pytest.param("cut.safetensors", PYTHON, "which does not fit", id="truncated"),
        pytest.param("gone.safetensors", PYTHON, "no such file: 'gone.safetensors'", id="missing weights"),
        pytest.param("../net.safetensors", PYTHON, "the path leaves the ensemble folder", id="path that leaves"),
        pytest.param(PYTHON, PYTHON, "allowed: the key beside a model that ends in .safetensors", id="not beside weights"),
    ],
)
def test_weights_without_a_fitting_architecture_are_refused(
    folder: Path, name: str, architecture: str | None, message: str
) -> None:
    with pytest.raises(InvalidEnsemble, match=f"^members.vision.*{re.escape(message)}"):
        load_source(name, folder, architecture=architecture)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed here")
def test_a_missing_timm_is_answered_with_the_command_that_installs_it(folder: Path) -> None:
    with pytest.raises(InvalidEnsemble, match=r"needs timm, which cannot be imported .*pip install 'twinfer\[timm\]'"):
        load_source("net.safetensors", folder, Trust(), architecture="timm:resnet18")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed here; it needs torchvision")
def test_timm_makes_an_architecture_by_its_name(tmp_path: Path) -> None:
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False).eval()
    save_model(model, str(tmp_path / "resnet.safetensors"))
    loaded = load_source("resnet.safetensors", tmp_path, Trust(), architecture="timm:resnet18")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(compute(loaded, x), model(x))
    assert loaded.digest == hashlib.sha256((tmp_path / "resnet.safetensors").read_bytes()).hexdigest()
    with pytest.raises(InvalidEnsemble, match=r"^members.vision.architecture: found 'timm:no_such_net', which timm"):
        load_source("resnet.safetensors", tmp_path, Trust(), architecture="timm:no_such_net")

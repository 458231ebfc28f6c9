"""Measured plans outlive the process that measured them, and only where they still hold."""

import shutil
from pathlib import Path

import pytest

from tests.servers import DIGITS
from twinfer_server.executor import Ensemble
from twinfer_server.serve import prepare_ensemble
from twinfer_server.settings import ServerSettings


def start(folder: Path, cache: Path) -> Ensemble:
    return prepare_ensemble(folder, ServerSettings(cache_dir=str(cache), trust_code=True), lambda done, total: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DIGITS, tmp_path / "digits", ignore=shutil.ignore_patterns("heldout", "fit", "*.py")))


def test_a_restart_takes_over_what_was_measured(folder: Path, tmp_path: Path) -> None:
    first, second = start(folder, tmp_path / "cache"), start(folder, tmp_path / "cache")
    assert first.times is not None
    assert second.times is not None
    # Nobody measures the same nanoseconds twice.
    assert first.times.measured == second.times.measured
    assert first.times.serial_threads == second.times.serial_threads


def test_another_ensemble_file_is_measured_afresh(folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path / "cache")
    spec = folder / "ensemble.toml"
    spec.write_text(spec.read_text() + "\n# changed\n")
    start(folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{}", '{"measured": 1, "serial_threads": 1}', "\x00"], ids=repr)
def test_a_damaged_file_is_measured_afresh_and_replaced(folder: Path, tmp_path: Path, content: str) -> None:
    start(folder, tmp_path / "cache")
    [path] = (tmp_path / "cache").iterdir()
    path.write_text(content)
    assert start(folder, tmp_path / "cache").times is not None
    assert len(path.read_text()) > 100


def test_a_folder_that_cannot_be_written_does_not_stop_the_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert start(folder, tmp_path / "file" / "cache").times is not None


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

def call(x: torch.Tensor) -> torch.Tensor:
    return x

def make_call():
    return call
"""


@pytest.fixture
def python_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "ensemble.toml").write_text(
        "name = 'python'\nversion = 1\ntask = 'classification'\n[members.net]\nmodel = 'python:net.py:Net'\n"
        "[members.net.input.x]\nkind = 'tensor'\ndtype = 'float32'\nshape = [2]\n[fusion]\nmethod = 'weighted_mean'\n"
    )
    return folder


def test_python_with_other_weights_takes_over_what_was_measured(python_folder: Path, tmp_path: Path) -> None:
    first, second = start(python_folder, tmp_path / "cache"), start(python_folder, tmp_path / "cache")
    assert first.times is not None
    assert second.times is not None
    assert first.times.measured == second.times.measured


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return self.layer(x)", "return self.layer(x) * 2", id="code"),
        pytest.param("nn.Linear(2, 3)", "nn.Linear(2, 4)", id="shapes"),
    ],
)
def test_python_that_computes_something_else_is_measured_afresh(python_folder: Path, tmp_path: Path, old: str, new: str) -> None:
    start(python_folder, tmp_path / "cache")
    (python_folder / "net.py").write_text(NET.replace(old, new))
    start(python_folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_callable_of_which_nobody_knows_what_it_computes_is_measured_every_time(python_folder: Path, tmp_path: Path) -> None:
    spec = python_folder / "ensemble.toml"
    spec.write_text(spec.read_text().replace("net.py:Net", "net.py:make_call"))
    start(python_folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()

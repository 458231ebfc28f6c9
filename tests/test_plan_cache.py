"""Measured plans outlive the process that measured them, and only where they still hold."""

import shutil
from pathlib import Path

import pytest

from tests.servers import DIGITS
from twinfer_server.ensemble import Ensemble
from twinfer_server.serve import prepare_ensemble
from twinfer_server.settings import ServerSettings


def start(folder: Path, cache: Path) -> Ensemble:
    return prepare_ensemble(folder, ServerSettings(cache_dir=str(cache)), lambda done, total: None)


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

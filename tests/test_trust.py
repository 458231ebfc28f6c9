"""Trust: a model file is a program, and it runs only if the operator said so."""

import hashlib
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.sources import TRUSTS_ALL, load_source
from twinfer_server.errors import InvalidEnsemble, UntrustedCode
from twinfer_server.trust import PACKAGED_LIST, Trust, format_trust_list, read_trust_list

DIGITS = Path(__file__).parents[1] / "ensembles" / "digits"


class Bait:
    """What leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.mkdir, (self.trace,)


def save_program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.ones(1, 2),)), path)


def plant_pickle(path: Path, trace: Path) -> None:
    """Rewrite a saved program so that a pickle inside it makes the directory `trace`."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    [target] = [name for name in entries if "sample_inputs" in name]
    entries[target] = pickle.dumps(Bait(trace))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_a_planted_pickle_does_not_run_without_trust_and_would_have_run_with_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    save_program(tmp_path / "model.pt2")
    plant_pickle(tmp_path / "model.pt2", trace)
    with pytest.raises(UntrustedCode):
        load_source("model.pt2", tmp_path, Trust())
    assert not trace.exists()
    with pytest.raises(InvalidEnsemble, match="cannot read"):
        load_source("model.pt2", tmp_path, TRUSTS_ALL)
    assert trace.exists(), "the bait is no bait"


def test_a_program_is_refused_naming_its_digest_and_runs_once_that_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    save_program(path)
    with pytest.raises(UntrustedCode) as refusal:
        load_source("model.pt2", tmp_path, Trust())
    text = str(refusal.value)
    assert text.startswith("members.vision.model: ")
    for part in (str(path), hashlib.sha256(path.read_bytes()).hexdigest(), "--trust-list", "--trust-code"):
        assert part in text
    (tmp_path / "list.txt").write_text(format_trust_list([path]))
    trust = Trust.read(runs_any_code=False, lists=[tmp_path / "list.txt"])
    assert load_source("model.pt2", tmp_path, trust).digest in trust.digests
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UntrustedCode):
        load_source("model.pt2", tmp_path, trust)


def test_python_runs_only_with_trust_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "model.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).mkdir()\nmodel = print\n")
    with pytest.raises(UntrustedCode, match=r"members\.vision\.model: .*--trust-code"):
        load_source("python:model.py:model", tmp_path, Trust())
    assert not trace.exists()


def test_the_packaged_list_holds_the_digits_members_and_nothing_else() -> None:
    assert PACKAGED_LIST.read_text() == format_trust_list(DIGITS.glob("*.pt2")), "digits retrained? run `make digits`"
    assert load_source("vision.pt2", DIGITS, Trust.read(False, [])).digest


def test_the_module_prints_the_list_of_the_files_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"a program")
    command = [sys.executable, "-m", "twinfer_server.trust", str(tmp_path / "model.pt2")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert printed.stderr == ""
    (tmp_path / "list.txt").write_text(printed.stdout)
    assert read_trust_list(tmp_path / "list.txt") == {hashlib.sha256(b"a program").hexdigest()}


def test_a_list_may_hold_comments_blank_lines_and_upper_case(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# mine\n\n  {'AB' * 32}  # model.pt2\n")
    assert read_trust_list(tmp_path / "list.txt") == {"ab" * 32}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\nabc\n", r"line 2: found 'abc'; allowed: a sha256 as 64 hex digits", id="too short"),
        pytest.param(b"g" * 64, r"line 1: found 'ggg.*; allowed: a sha256", id="not hex"),
        pytest.param(b"a" * 100_000, r"line 1: found 'aaa.*\.\.\.'; allowed", id="very long"),
        pytest.param(b"\xff", r"cannot be read", id="not UTF-8"),
        pytest.param(None, r"cannot be read.*No such file", id="missing"),
    ],
)
def test_a_bad_list_is_refused_naming_file_and_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidEnsemble, match=f"trust list {re.escape(str(path))}.*{message}"):
        Trust.read(False, [path])


@given(content=st.binary(max_size=200))
def test_whatever_a_list_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.txt"
    path.write_bytes(content)
    try:
        digests = read_trust_list(path)
    except InvalidEnsemble:
        return
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_a_pipe_is_no_trust_list(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(InvalidEnsemble, match=r"list\.txt: cannot be read: .*not a regular file"):
        read_trust_list(tmp_path / "list.txt")

"""Archives of torch: exported programs, packages that AOTInductor has compiled, and TorchScript."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from tests.models import write_members
from tests.sources import SHIFT, Shift, compute, export, find_wrong_in_threads, load_folder, load_source
from twinfer_server.errors import InvalidEnsemble, UntrustedCode
from twinfer_server.trust import Trust, format_trust_list

COMPILE = """
    import sys
    import torch

    program = torch.export.load(sys.argv[1])
    fast_to_compile = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[2], inductor_configs=fast_to_compile)
"""


def save_script(model: nn.Module, path: Path) -> None:
    """Save as TorchScript; a trace, for scripting knows no constants of tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 3)), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    export(Shift().eval(), folder / "exported.pt2")
    export(Shift().train(), folder / "training.pt2")
    export(nn.BatchNorm1d(3).train(), folder / "statistics.pt2")
    save_script(Shift().eval(), folder / "script.pt")
    save_script(Shift().eval(), folder / "script.ts")
    torch.save(Shift().state_dict(), folder / "weights.pt")
    (folder / "empty.pt2").write_bytes(b"")
    for suffix, whole in ((".pt2", "exported.pt2"), (".pt", "script.pt")):
        (folder / f"text{suffix}").write_text("not a program")
        (folder / f"cut{suffix}").write_bytes((folder / whole).read_bytes()[:-100])
    with zipfile.ZipFile(folder / "hollow.pt2", "w") as archive:
        archive.writestr("hollow/data/aotinductor/model/nothing.txt", "")
    with zipfile.ZipFile(folder / "named.pt2", "w") as archive:
        archive.writestr("é" * 9, "")
    (folder / "named.pt2").write_bytes((folder / "named.pt2").read_bytes().replace("é".encode(), b"\xff\xff"))
    with zipfile.ZipFile(folder / "listed.pt2", "w") as archive:
        archive.writestr("hollow/data/aotinductor/model/wrapper_metadata.json", "[1]")
    return folder


@pytest.fixture(scope="module")
def package(folder: Path) -> Path:
    """The folder with a compiled package in it, too; compiling takes some fifteen seconds, in a process of its own."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("AOTInductor compiles with a C++ compiler, and there is none here")
    command = [sys.executable, "-W", "ignore", "-c", dedent(COMPILE), "exported.pt2", str(folder / "compiled.pt2")]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


PROGRAMS = {
    "exported.pt2": ("pt2", 36, True),
    "script.pt": ("torchscript", 24, True),  # the trace holds the constant in its code
    "script.ts": ("torchscript", 24, True),
    "compiled.pt2": ("aotinductor", None, False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_trusted_program_computes_what_its_model_did_at_any_number_of_samples(package: Path, name: str) -> None:
    with pytest.raises(UntrustedCode, match="is a program"):
        load_source(name, package, Trust())
    (package / "list.txt").write_text(format_trust_list([package / name]))
    model = load_source(name, package, Trust.read(runs_any_code=False, lists=[package / "list.txt"]))
    for samples in (1, 2, 5):
        answer = compute(model, torch.zeros(samples, 3))
        assert torch.equal(answer, SHIFT.expand(samples, 3))
        assert not answer.requires_grad
    loader, size, is_capturable = PROGRAMS[name]
    assert (model.loader, model.is_capturable) == (loader, is_capturable)
    assert model.parameter_bytes == size or (size is None and model.parameter_bytes > 0)
    assert model.digest == hashlib.sha256((package / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["exported.pt2", "compiled.pt2"])
def test_a_program_may_run_in_several_threads_at_once(package: Path, name: str) -> None:
    model = load_source(name, package)
    assert find_wrong_in_threads(model, lambda x: x + SHIFT, width=3, threads=8) == []


@pytest.mark.parametrize("name", ["exported.pt2", "compiled.pt2"])
def test_a_program_is_served_as_a_member(package: Path, tmp_path: Path, name: str) -> None:
    spec = write_members(tmp_path, {"shift": name}) / "ensemble.toml"
    spec.write_text(spec.read_text().replace("shape = [1]", "shape = [3]"))
    shutil.copy(package / name, tmp_path)
    [member] = load_folder(tmp_path).members
    assert member.output_shape == (3,)


def test_torchscript_is_said_to_be_deprecated(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_source("script.pt", folder)
    assert [record.getMessage() for record in caplog.records] == [
        "script.pt is TorchScript, which PyTorch has deprecated; it is served, but save it with torch.export some day"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("empty.pt2", "found 'empty.pt2', which torch", id="empty"),
        pytest.param("text.pt2", "allowed: a program saved by torch.export.save", id="text"),
        pytest.param("cut.pt2", "allowed: a program saved by torch.export.save", id="truncated"),
        pytest.param("training.pt2", "exported in training mode (aten.dropout", id="dropout that is on"),
        pytest.param("statistics.pt2", "exported in training mode (aten.batch_norm", id="statistics that mix samples"),
        pytest.param("named.pt2", "allowed: a program saved by torch.export.save", id="an archive of names that are no text"),
        pytest.param("listed.pt2", "allowed: a package of torch._inductor", id="a compiled package that says nothing of itself"),
        pytest.param("hollow.pt2", "allowed: a package of torch._inductor", id="what only looks like a compiled package"),
        pytest.param("weights.pt", "it holds no TorchScript; torch.save writes weights", id="weights of torch.save"),
        pytest.param("text.pt", "it holds no TorchScript", id="text for TorchScript"),
        pytest.param("cut.pt", "it holds no TorchScript", id="truncated TorchScript"),
    ],
)
def test_what_is_no_program_to_serve_is_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=f"^members.vision.model: .*{re.escape(message)}"):
        load_source(name, folder)


def test_a_program_that_was_exported_for_another_shape_than_the_input_has_is_refused(tmp_path: Path) -> None:
    class Pool(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2)).unsqueeze(1)

    samples = torch.export.Dim("samples", max=64)
    program = torch.export.export(Pool().eval(), (torch.zeros(2, 8, 8),), dynamic_shapes=({0: samples},))
    torch.export.save(program, tmp_path / "pool.pt2")
    spec = write_members(tmp_path, {"pool": "pool.pt2"}) / "ensemble.toml"
    spec.write_text(spec.read_text().replace("shape = [1]", "shape = [10, 10]"))
    with pytest.raises(InvalidEnsemble, match=r"^members\.pool\.model: .*to be equal to 8, but got 10"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        pytest.param({"AOTI_DEVICE_KEY": "cuda"}, "compiled for 'cuda'; allowed: a package compiled for 'cpu'", id="device"),
        pytest.param({"AOTI_CPU_ISA": "AVX512"}, "compiled for a processor with 'AVX512'", id="processor"),
    ],
)
def test_a_package_for_another_machine_is_refused_before_it_is_loaded(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], message: str
) -> None:
    with zipfile.ZipFile(package / "compiled.pt2") as old, zipfile.ZipFile(tmp_path / "other.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(json.loads(content) | facts) if name.endswith("metadata.json") else content)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(InvalidEnsemble, match=re.escape(message)):
        load_source("other.pt2", tmp_path)

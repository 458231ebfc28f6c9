"""Loaders of programs beside torch.export's: TorchScript, and packages that AOTInductor has compiled."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn

from tests.models import write_members
from tests.sources import load_source
from tests.test_loaders import Shift, export
from twinfer_server.device import CpuDevice
from twinfer_server.errors import InvalidEnsemble, UntrustedCode
from twinfer_server.executor import load_ensemble
from twinfer_server.inputs import InputLimits
from twinfer_server.loaders.programs import CUDA_RUNNERS, open_package
from twinfer_server.trust import Trust, format_trust_list

ANSWER = torch.tensor([111.0, 122.0, 133.0])
"""What `Shift` makes of zeros."""


def save_script(model: nn.Module, path: Path) -> None:
    """Save as TorchScript; a trace, for scripting knows no constants of tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 3)), path)


def compute(model: object, x: Tensor) -> Tensor:
    """Call a loaded model as a member does."""
    assert callable(model)
    with torch.inference_mode():
        answer = model(x)
    assert isinstance(answer, Tensor)
    return answer


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    save_script(Shift().eval(), tmp_path / "shift.pt")
    save_script(Shift().eval(), tmp_path / "shift.ts")
    torch.save(Shift().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("not a program")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "shift.pt").read_bytes()[:-100])
    return tmp_path


@pytest.mark.parametrize("name", ["shift.pt", "shift.ts"])
def test_torchscript_computes_what_its_model_did_at_any_number_of_rows(scripted: Path, name: str) -> None:
    model = load_source(name, scripted)
    for rows in (1, 2, 5):
        assert torch.equal(compute(model.module, torch.zeros(rows, 3)), ANSWER.expand(rows, 3))
    assert (model.loader, model.parameter_bytes, model.is_capturable) == ("torchscript", 24, True)
    assert re.fullmatch("[0-9a-f]{64}", model.digest)


def test_torchscript_is_said_to_be_deprecated_once(scripted: Path, caplog: pytest.LogCaptureFixture) -> None:
    (scripted / "shift.pt").rename(scripted / "said_once.pt")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_source("said_once.pt", scripted)
    assert [record.getMessage() for record in caplog.records] == [
        "said_once.pt is TorchScript, which PyTorch has deprecated; it is served, but save it with torch.export some day"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("weights.pt", "it holds no TorchScript; torch.save writes weights", id="weights of torch.save"),
        pytest.param("text.pt", "it holds no TorchScript", id="text"),
        pytest.param("cut.pt", "it holds no TorchScript", id="truncated"),
        pytest.param("gone.pt", "no such file", id="missing"),
    ],
)
def test_what_is_no_torchscript_is_refused(scripted: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=f"^members.vision.model: .*{re.escape(message)}"):
        load_source(name, scripted)


def test_torchscript_is_a_program_that_a_trust_list_admits(scripted: Path) -> None:
    with pytest.raises(UntrustedCode):
        load_source("shift.pt", scripted, Trust())
    (scripted / "list.txt").write_text(format_trust_list([scripted / "shift.pt"]))
    trust = Trust.read(runs_any_code=False, lists=[scripted / "list.txt"])
    assert load_source("shift.pt", scripted, trust).digest in trust.digests


COMPILE = """
    import sys
    import torch

    program = torch.export.load(sys.argv[1])
    fast_to_compile = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[2], inductor_configs=fast_to_compile)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled package of `Shift`; compiling takes some fifteen seconds, in a process of its own."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("AOTInductor compiles with a C++ compiler, and there is none here")
    folder = tmp_path_factory.mktemp("package")
    export(Shift().eval(), folder / "exported.pt2")
    command = [sys.executable, "-W", "ignore", "-c", dedent(COMPILE), "exported.pt2", str(folder / "shift.pt2")]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "shift.pt2"


def rewrite_metadata(package: Path, folder: Path, **facts: str) -> None:
    """Write `shift.pt2` into `folder`, with other facts about the machine that it is for."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(folder / "shift.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(json.loads(content) | facts) if name.endswith("metadata.json") else content)


def test_a_compiled_package_computes_what_its_model_did_at_any_number_of_rows(package: Path) -> None:
    model = load_source("shift.pt2", package.parent)
    for rows in (1, 2, 5):
        assert torch.equal(compute(model.module, torch.zeros(rows, 3)), ANSWER.expand(rows, 3))
    assert (model.loader, model.is_capturable) == ("aotinductor", False)
    assert model.parameter_bytes > 0
    assert re.fullmatch("[0-9a-f]{64}", model.digest)


@pytest.mark.parametrize("runners", [1, CUDA_RUNNERS])
def test_a_compiled_package_may_run_in_several_threads_at_once(package: Path, runners: int) -> None:
    compiled = open_package(package.read_bytes(), runners)
    start = threading.Barrier(4)
    wrong: list[Tensor] = []

    def work(thread: int) -> Iterator[Tensor]:
        start.wait()
        for turn in range(20):
            x = torch.full((1 + turn % 4, 3), float(thread))
            answer = compute(compiled, x)
            if not torch.equal(answer, x + ANSWER):
                yield answer

    threads = [threading.Thread(target=lambda thread=thread: wrong.extend(work(thread))) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_compiled_package_flies_as_a_member(package: Path) -> None:
    folder = write_members(package.parent, {"compiled": "shift.pt2"})
    spec = folder / "ensemble.toml"
    spec.write_text(spec.read_text().replace("shape = [1]", "shape = [3]"))
    [member] = load_ensemble(folder, CpuDevice(lanes=2), Trust(runs_any_code=True), InputLimits()).members
    assert member.output_shape == (3,)


def test_a_compiled_package_is_a_program(package: Path) -> None:
    with pytest.raises(UntrustedCode, match="is a program"):
        load_source("shift.pt2", package.parent, Trust())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        pytest.param({"AOTI_DEVICE_KEY": "cuda"}, "compiled for 'cuda'; allowed: a package compiled for 'cpu'", id="device"),
        pytest.param({"AOTI_CPU_ISA": "AVX512"}, "compiled for a processor with AVX512", id="processor"),
    ],
)
def test_a_package_for_another_machine_is_refused_before_it_is_loaded(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], message: str
) -> None:
    rewrite_metadata(package, tmp_path, **facts)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(InvalidEnsemble, match=re.escape(message)):
        load_source("shift.pt2", tmp_path)


def test_what_only_looks_like_a_compiled_package_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("shift/data/aotinductor/model/nothing.txt", "")
    (tmp_path / "shift.pt2").write_bytes(content.getvalue())
    with pytest.raises(InvalidEnsemble, match=r"found 'shift.pt2', which torch .* cannot load"):
        load_source("shift.pt2", tmp_path)

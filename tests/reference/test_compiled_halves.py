"""A package that AOTInductor has compiled of a model in halves; compiling takes a while."""

import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from tests.loaders.test_arguments import IMAGE, PICTURES, ask, compute_net, load_member, save_program

COMPILE = """
    import sys
    import torch

    program = torch.export.load(sys.argv[1])
    fast_to_compile = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[2], inductor_configs=fast_to_compile)
"""


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="AOTInductor needs a C++ compiler")
def test_a_compiled_package_of_halves_gets_halves(tmp_path: Path) -> None:
    """Its library reads whatever it is given as halves."""
    model = save_program(tmp_path, "m.pt2", torch.float16)
    command = [sys.executable, "-W", "ignore", "-c", dedent(COMPILE), str(tmp_path / "m.pt2"), str(tmp_path / "compiled.pt2")]
    subprocess.run(command, check=True, capture_output=True)
    answer = ask(load_member(tmp_path, "compiled.pt2", IMAGE), PICTURES)
    assert answer == pytest.approx(compute_net(model, torch.float16), abs=1e-2)

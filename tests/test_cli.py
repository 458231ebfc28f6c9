"""The service's commands: each is found by its name, and brings only what it needs."""

import gc
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from twinfer_server.cli import COMMANDS, load_command
from twinfer_server.runtime import garbage_put_off

NOT_FOR_SERVING = {
    "torch._dynamo",
    "torch._inductor",
    "transformers",
    "onnxruntime",
    "polars",
    "matplotlib",
    "prometheus_client",
    "twinfer_server.profile",
    "twinfer_server.draft",
    "twinfer_server.fit",
}
SERVING = "import sys; import twinfer_server.cli, twinfer_server.serve; print(*sys.modules, sep='\\n')"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_found_by_its_name_and_explains_itself(name: str) -> None:
    done = CliRunner().invoke(load_command(name), ["--help"])
    assert (done.exit_code, done.exception) == (0, None)


def test_serving_imports_nothing_that_only_others_need() -> None:
    done = subprocess.run([sys.executable, "-c", SERVING], capture_output=True, text=True, check=True)
    assert not NOT_FOR_SERVING & set(done.stdout.split())


def fail_to_import() -> None:
    with garbage_put_off():
        assert not gc.isenabled()
        raise ImportError


def test_no_garbage_is_collected_during_an_import_and_it_is_afterwards_even_if_the_import_fails() -> None:
    with pytest.raises(ImportError):
        fail_to_import()
    assert gc.isenabled()
    gc.unfreeze()

"""Python programs, above all the command line, in processes of their own, without some of the installed modules."""

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

HIDE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
MAIN = "from twinfer.cli import main; main()"


def without(
    absent: Collection[str], *arguments: str, program: str = MAIN, path: Path | None = None, flags: tuple[str, ...] = ()
) -> Any:
    """Run a program, by default `twinfer`, without the modules in `absent`, with a folder first on the module path."""
    search = os.pathsep.join([str(path), *sys.path] if path else sys.path)
    command = [sys.executable, "-W", "error", *flags, "-c", HIDE.format(absent=tuple(absent)) + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": search})

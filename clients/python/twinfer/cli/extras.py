"""Extras: packages that only some commands need, imported when one of them runs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import typer

IMPORTED_AS = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "nvidia-ml-py": "pynvml",
    "pillow": "PIL",
}
"""The modules of distributions whose name is another one; the names of the rest differ in hyphens only."""


@contextmanager
def needing(extra: str, command: str) -> Iterator[None]:
    """Import in the body what an extra brings. Exits with 2, and how to install it, where a module of it is missing.

    Any other missing module is a defect, or a module of the user's own, and raised.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name not in modules_of(extra):
            raise
        typer.echo(f"{command} needs {missing.name}, which is not installed. Install it:\n  {install(extra)}", err=True)
        raise typer.Exit(2) from None


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'twinfer[{extra}]'"


def modules_of(extra: str) -> set[str]:
    """Return the modules that an extra brings, as the installed package's metadata say, and the service package itself."""
    names = [
        re.split(r"[^\w.-]", requirement)[0]
        for requirement in metadata.requires("twinfer") or ()
        if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
    ]
    return {"twinfer_server"} | {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}

"""`serve`, `validate`, `init`, `demo` and `fit`: shown here, done by the service package, which the `server` extra brings.

Nothing of it is imported before one of them is called, so that `infer` and `describe` start without torch.
"""

import importlib
from typing import Any

import typer

# The service's own typer app reads what follows the command, --help included.
FORWARDED: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}

INSTALL = "pip install 'twinfer[server]'"
INSTALL_FIT = "pip install 'twinfer[fit]'"

# What the `server` extra brings, by the names that are imported. Anything else that is missing is a defect, or a module
# of the user's own.
MODULES = frozenset(
    {
        "grpc_health",
        "grpc_reflection",
        "numpy",
        "PIL",
        "prometheus_client",
        "pydantic",
        "pydantic_settings",
        "rich",
        "safetensors",
        "simplejpeg",
        "tokenizers",
        "torch",
        "twinfer_server",
        "uvloop",
    }
)
FIT_MODULES = MODULES | {"jinja2", "matplotlib", "polars"}


def serve(context: typer.Context) -> None:
    """Serve an ensemble folder (needs the `server` extra)."""
    _forward("serve", context.args)


def validate(context: typer.Context) -> None:
    """Check an ensemble folder without serving it (needs the `server` extra)."""
    _forward("validate", context.args)


def demo(context: typer.Context) -> None:
    """Serve the digits, ask real questions, show the answers (needs the `server` extra)."""
    _forward("demo", context.args)


def fit(context: typer.Context) -> None:
    """Fit the fusion of an ensemble folder to labelled rows, and report (needs the `fit` extra)."""
    _forward("fit", context.args, FIT_MODULES, INSTALL_FIT)


def init(context: typer.Context) -> None:
    """Make an ensemble folder of models that you have (needs the `server` extra)."""
    _forward("init", context.args)


def compare(context: typer.Context) -> None:
    """Try every precision and acceleration on an ensemble folder (a picture and --data need the `fit` extra)."""
    _forward("compare", context.args, MODULES | FIT_MODULES)


def _forward(command: str, arguments: list[str], modules: frozenset[str] = MODULES, install: str = INSTALL) -> None:
    try:
        status = importlib.import_module("twinfer_server.commands").main([command, *arguments])
    except ModuleNotFoundError as missing:
        what = "the server" if install == INSTALL else "it"
        if missing.name not in modules:
            raise
        typer.echo(f"twinfer {command} needs {missing.name}, which is not installed. Install {what}:", err=True)
        typer.echo(f"  {install}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(status or 0)

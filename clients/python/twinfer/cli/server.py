"""`serve`, `validate`, `demo`, `fit`, `compare`, `init`: shown here, done by the service package, which the `server` extra brings.

Nothing of it is imported before one of them is called, so that `infer` and `describe` start without torch.
"""

import importlib
from typing import Any

import typer

from twinfer.cli.extras import needing

# The service's own typer app reads what follows the command, --help included.
FORWARDED: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}

INSTALL = "pip install 'twinfer[server]'"
INSTALL_FIT = "pip install 'twinfer[fit]'"

# What the `server` extra brings, by the names that are imported.
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


EXTRAS = {"fit": (FIT_MODULES, INSTALL_FIT, "it"), "compare": (FIT_MODULES, INSTALL, "the server")}
"""What other commands need than MODULES, how to install it, and what that is called."""

COMMANDS = {
    "serve": "Serve an ensemble folder (needs the `server` extra).",
    "validate": "Check an ensemble folder without serving it (needs the `server` extra).",
    "demo": "Serve the digits, ask real questions, show the answers (needs the `server` extra).",
    "fit": "Fit the fusion of an ensemble folder to labelled rows, and report (needs the `fit` extra).",
    "compare": "Try every precision and acceleration on an ensemble folder (a picture and --data need the `fit` extra).",
    "init": "Make an ensemble folder of models that you have (needs the `server` extra).",
}
"""By their names, what their help says first."""


def forward(context: typer.Context) -> None:
    """Run the service's command of the same name, with all that follows it."""
    name = context.info_name or ""
    modules, install, what = EXTRAS.get(name, (MODULES, INSTALL, "the server"))
    with needing(modules, f"twinfer {name}", install, what):
        status = importlib.import_module("twinfer_server.cli").main([name, *context.args])
    raise typer.Exit(status or 0)

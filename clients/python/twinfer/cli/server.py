"""The commands that the service package does: shown here, so that `infer` and `describe` start without torch."""

import importlib
from typing import Any

import typer

from twinfer.cli.extras import needing

SERVICE_MODULE = "twinfer_server.cli"
"""Its `main` takes the command's name and all that follows it."""

COMMANDS = {
    "serve": ("server", "Serve an ensemble folder."),
    "validate": ("server", "Check an ensemble folder without serving it."),
    "demo": ("server", "Serve the digits, ask real questions, show the answers."),
    "init": ("server", "Make an ensemble folder of models that you have."),
    "profile": ("fit", "Measure whether the members of an ensemble folder go well together on this device."),
    "fit": ("fit", "Fit the fusion of an ensemble folder to labelled rows."),
}
"""By name: the extra that the command needs, and what its help says first."""

# The service's own typer app reads what follows the command, --help included.
FORWARDED: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_server_commands(app: typer.Typer) -> None:
    """Add the commands of COMMANDS to an app."""
    for name, (extra, says) in COMMANDS.items():
        text = f"{says} Needs the `{extra}` extra."
        app.command(name, help=text, context_settings=FORWARDED, add_help_option=False)(_forward)


def _forward(context: typer.Context) -> None:
    """Run the service's command of the same name, with all that follows it."""
    name = context.info_name or ""
    with needing(COMMANDS[name][0], f"twinfer {name}"):
        status = importlib.import_module(SERVICE_MODULE).main([name, *context.args])
    raise typer.Exit(status or 0)

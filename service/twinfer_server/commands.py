"""The commands that need the service, and the way into them from the light client's command line.

A command's module is imported when it is called for, so that `serve` starts without what fitting and drafting need.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module

import typer

from .runtime import collecting_put_off

COMMANDS: Mapping[str, str] = {
    "serve": ".server_commands",
    "validate": ".server_commands",
    "demo": ".server_commands",
    "fit": ".fitting.command",
    "compare": ".comparison.command",
    "init": ".drafting.command",
}
"""The modules; each has a function named after the command."""


def load_command(name: str) -> typer.Typer:
    """Import one of the commands, and all that it needs."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    with collecting_put_off():
        module = import_module(COMMANDS[name], __package__)
    app.command()(getattr(module, f"{name}_command"))
    return app


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands with `arguments`, the command's name first."""
    name, *rest = arguments
    load_command(name)(args=rest, prog_name=f"twinfer {name}")

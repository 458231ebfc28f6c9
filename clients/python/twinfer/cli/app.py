"""The commands, and the way into them."""

from importlib import metadata
from typing import Annotated

import typer

from twinfer.cli.bench import bench
from twinfer.cli.describe import describe
from twinfer.cli.infer import infer
from twinfer.cli.operate import fusion, member
from twinfer.cli.server import COMMANDS, FORWARDED, forward
from twinfer.cli.timeline import timeline

app = typer.Typer(
    help="Two models side by side, one fused answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(infer)
app.command()(describe)
app.command()(bench)
app.command()(timeline)
app.add_typer(fusion, name="fusion")
app.add_typer(member, name="member")
for name, says in COMMANDS.items():
    app.command(name, help=says, context_settings=FORWARDED, add_help_option=False)(forward)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(metadata.version("twinfer"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Two models side by side, one fused answer."""


def main() -> None:
    """Run the command line. Exits with 0, 1 for a failed call, 2 for wrong usage."""
    app(prog_name="twinfer")

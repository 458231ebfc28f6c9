"""The commands, and the way into them."""

from importlib import metadata
from typing import Annotated

import typer

from twinfer.cli.bench import bench
from twinfer.cli.describe import describe
from twinfer.cli.infer import infer
from twinfer.cli.operate import fusion, member, timeline
from twinfer.cli.server import add_server_commands
from twinfer.cli.token import token

SAYS = "Two models side by side, one fused answer."

app = typer.Typer(help=SAYS, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (infer, describe, bench, timeline):
    app.command()(command)
app.add_typer(fusion, name="fusion")
app.add_typer(member, name="member")
app.add_typer(token, name="token")
add_server_commands(app)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(metadata.version("twinfer"))
        raise typer.Exit


@app.callback(help=SAYS)
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exits with 0, 1 for a failed call, 2 for wrong usage."""
    app(prog_name="twinfer")

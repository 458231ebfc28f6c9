"""`twinfer token`: makes the tokens with which a server's callers prove their names."""

import hashlib
import re
import secrets
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

SAYS = "Make tokens for a server's callers."

token = typer.Typer(help=SAYS, no_args_is_help=True)


class Role(StrEnum):
    """What a caller may do, by the names that a server's `auth_file` has for it."""

    infer = "infer"
    operate = "operate"
    observe = "observe"


@token.callback(help=SAYS)
def _group() -> None:
    """Have `new` be a command of its own, though it is the only one."""


@token.command("new")
def new(
    name: Annotated[str, typer.Argument(help="The caller's name, as metrics and logs will have it.")],
    role: Annotated[Role, typer.Option(help="What the caller may do: ask for answers, change the server, or look.")],
    auth_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The server's auth_file, to which the caller is added; made if it is not there."),
    ] = None,
) -> None:
    """Print a new token, once: the server's file has its digest alone.

    Without --auth-file the entry for that file is printed too, to standard error.
    """
    if not NAME.fullmatch(name) or name == "anonymous":
        allowed = "1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit; not 'anonymous'"
        raise typer.BadParameter(f"{name[:60]!r}; allowed: {allowed}.", param_hint="NAME")
    made = secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(made.encode()).hexdigest()
    entry = f'[callers."{name}"]\nrole = "{role.value}"\ntoken = "sha256:{digest}"\n'
    if auth_file is None:
        typer.echo(f"For the server's auth_file:\n\n{entry}\nThe token, which is shown only now:", err=True)
    else:
        _add(auth_file, name, entry)
    typer.echo(made)


def _add(file: Path, name: str, entry: str) -> None:
    """Add an entry at the end of a file. Raises typer.BadParameter."""
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if name in tomllib.loads(text).get("callers", {}):
            raise typer.BadParameter(f"{name!r} is in the file already; allowed: another name.", param_hint="NAME")
        with file.open("a", encoding="utf-8") as end:
            end.write(("" if text.endswith("\n") or not text else "\n") + ("\n" if text else "") + entry)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--auth-file") from None

"""Extras: packages that only some commands need, imported when one of them runs."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def needing(modules: Collection[str], who: str, install: str, what: str = "it") -> Iterator[None]:
    """Import inside of this what an extra brings. Exits with 2, and how to install it, where one of `modules` is missing.

    Anything else that is missing is a defect, or a module of the user's own, and raised.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name not in modules:
            raise
        typer.echo(f"{who} needs {missing.name}, which is not installed. Install {what}:\n  {install}", err=True)
        raise typer.Exit(2) from None

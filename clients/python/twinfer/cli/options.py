"""The options that several commands share, and how their values are read from the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from twinfer.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_SECONDS
from twinfer.cli.report import print_error
from twinfer.errors import TwinferError

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0}  # longest first: "5ms" ends with an s too


def seconds(text: str) -> float:
    """Return a span, 5s, 250ms, 2m or a bare number of seconds, in seconds. Raises typer.BadParameter."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        span = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        span = 0.0
    if not 0 < span < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a span of time; allowed: 5s, 250ms, 2m.")
    return span


def check_folder(file: Path | None) -> None:
    """Refuse before the work, not after it, a file that cannot be written. Raises typer.BadParameter."""
    if file is not None and not file.absolute().parent.is_dir():
        raise typer.BadParameter(f"{file}: there is no such folder.")


Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
Admin = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server's --admin-listen address.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SPAN", parser=seconds, help="How long it may take: 5s, 250ms, 2m.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included, and nothing else.")]

DEFAULT_SERVER = DEFAULT_TARGET
DEFAULT_TIMEOUT: Any = f"{DEFAULT_TIMEOUT_SECONDS:g}s"  # a text, for typer sends defaults through the parser too


@contextmanager
def failures_reported(as_json: bool) -> Iterator[None]:
    """Print a failed call in place of its answer, and exit with 1."""
    try:
        yield
    except TwinferError as error:
        print_error(error, as_json)
        raise typer.Exit(1) from None

"""What the commands share on a terminal: options, errors as one message, bars that show how far something is."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from .errors import InvalidEnsemble
from .runtime import end_process
from .settings import InvalidSettings

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Told how many of how many steps are done."""
OnStage = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many steps of it are."""

Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
TrustCode = Annotated[bool | None, typer.Option("--trust-code", help="Let any program among the models run.")]
TrustList = Annotated[
    list[Path] | None,
    typer.Option("--trust-list", help="A file with sha256 digests of programs that may run; repeatable."),
]
WIDE = 160
"""How many columns a table may take where there is no terminal: in a pipe or a file."""


def open_console() -> Console:
    """Return the console that results are printed on."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


@contextmanager
def plain_errors(*more: type[Exception]) -> Iterator[None]:
    """Show the errors that an operator can mend, a command's own included, as one message without a traceback, and end with 1."""
    known: tuple[type[Exception], ...] = (InvalidEnsemble, InvalidSettings, RuntimeError, *more)
    try:
        yield
    except known as error:
        logger.debug("ended by an error", exc_info=True)
        Console(stderr=True).print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        sys.stderr.flush()
        end_process(1)


@contextmanager
def warmup_bar() -> Iterator[OnProgress]:
    """Yield a callback that draws the warm-up's progress on standard error, where that is a terminal."""
    with stage_bars() as on_stage:
        yield lambda done, total: on_stage("warming up", done, total)


@contextmanager
def stage_bars() -> Iterator[OnStage]:
    """Yield a callback that draws the progress of what is being done on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def on_stage(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=None)
            bars.update(tasks[name], completed=done, total=total, visible=done < total)

        yield on_stage

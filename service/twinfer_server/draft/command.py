"""`twinfer init`."""

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UntrustedCode
from ..spec import NAME_PATTERN, SPEC_FILE
from ..terminal import plain_errors
from .draft import draft_member
from .folder import check_folder, write_folder
from .member import CannotDraft
from .towers import draft_towers


def init_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder to make.")],
    member: Annotated[
        list[str],
        typer.Option("--member", metavar="NAME=SOURCE", help="hf:DIR or FILE.onnx; repeatable. A CLIP-like hf:DIR: both towers."),
    ],
    fusion: Annotated[str, typer.Option("--fusion", metavar="METHOD", help="How to fuse. Default: what suits the task.")] = "",
    task: Annotated[str, typer.Option(help="Of .onnx files: classification, multi_label, embedding or tensor.")] = "",
) -> None:
    """Make an ensemble folder of models that you have; the file in it explains itself."""
    with plain_errors():
        sources = _split_all(member)
        towers = draft_towers(next(iter(sources.values()))) if len(sources) == 1 else None
        drafts = towers or [draft_member(name, source, task) for name, source in sources.items()]
        write_folder(folder, drafts, fusion)
        trust = ""
        try:
            asked = check_folder(folder, drafts)
        except UntrustedCode:
            asked, trust = "", " --trust-code"
        if asked:
            raise CannotDraft(f"{folder / SPEC_FILE} is written, and before it can be served this has to be mended in it:\n{asked}")
    shown = os.fsencode(folder).decode(errors="replace")
    typer.echo(f"{shown}/{SPEC_FILE}: {len(drafts)} members, task {drafts[0].task}")
    typer.echo(f"next: twinfer validate {shlex.quote(shown)}{trust}")


def _split_all(texts: list[str]) -> dict[str, str]:
    """Read NAME=SOURCE; raises typer.BadParameter."""
    sources: dict[str, str] = {}
    for text in texts:
        name, found, source = text.partition("=")
        if not found or not source:
            raise typer.BadParameter(f"{text[:60]!r} is not NAME=SOURCE.", param_hint="--member")
        if not re.fullmatch(NAME_PATTERN, name):
            raise typer.BadParameter(f"found the name {name[:60]!r}; allowed: {NAME_PATTERN}.", param_hint="--member")
        if name in sources:
            raise typer.BadParameter(f"found {name!r} twice; allowed: a name for each.", param_hint="--member")
        sources[name] = source
    return sources

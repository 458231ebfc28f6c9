"""`twinfer init`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from ..spec import NAME_PATTERN
from ..terminal import plain_errors
from .draft import draft_member, draft_towers, write_folder


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
    typer.echo(f"{folder / 'ensemble.toml'}: {len(drafts)} members, task {drafts[0].task}")
    typer.echo(f"next: twinfer validate {folder}")


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

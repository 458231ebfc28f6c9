"""The inputs of a request, as commands take them."""

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

# Not typer's own Path: whether it lets - through depends on its version.
Image = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The image file for the input `image`; - reads it from stdin."),
]
Text = Annotated[str | None, typer.Option(help="The text for the input `text`.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=VALUE",
        help="Any input by its name, several times if need be: a text, @FILE for an image, @FILE.npy for a tensor.",
    ),
]


def read_inputs(image: str | None, text: str | None, inputs: list[str] | None) -> dict[str, Any]:
    """Gather the inputs, if there are any. Raises typer.BadParameter for what cannot be read, or is given twice."""
    given: list[tuple[str, Any]] = []
    if image is not None:
        given.append(("image", _read_file(image)))
    if text is not None:
        given.append(("text", text))
    for item in inputs or []:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{item[:60]!r} is not NAME=VALUE.", param_hint="--input")
        given.append((name, _read_file(value[1:]) if value.startswith("@") else value))
    values = dict(given)
    if len(values) < len(given):
        raise typer.BadParameter("an input is given twice.")
    return values


def _read_file(name: str) -> Any:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}.") from None
    return _read_array(name, content) if name.endswith(".npy") else content


def _read_array(name: str, content: bytes) -> Any:
    try:
        from numpy.lib import format as npy
    except ModuleNotFoundError:
        raise typer.BadParameter(f"{name}: reading .npy files needs numpy: pip install numpy") from None
    try:
        return npy.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise typer.BadParameter(f"{name}: {error}") from None

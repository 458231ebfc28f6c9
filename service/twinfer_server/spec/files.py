"""What every table of an ensemble's file shares: strictness, names, faults, paths inside the folder, and JSON beside it."""

import errno
import json
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from ..errors import outline, quote

MOST_BYTES = 256 * 2**20
"""Of a file that is no model's weights: the largest vocabularies have some tens of megabytes."""
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class LeavesFolder(ValueError):
    """A path that leads out of the folder that it has to stay in."""


class Fault(ValueError):
    """A value that does not fit others: says the key, relative to the table that is checked, what was found, what is allowed."""

    def __init__(self, key: str, found: object, allowed: str) -> None:
        super().__init__(f"{key}: found {found}; allowed: {allowed}")


def find_file(folder: Path, value: str) -> Path:
    """Return the path of a file of the folder; raises LeavesFolder, or ValueError where there is no such file."""
    path = folder / value
    try:
        path = path.resolve()
        is_inside, is_file = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL: no name that a file can have
        is_inside, is_file = True, False
    if not is_inside:
        raise LeavesFolder(f"the path leaves the ensemble folder: {quote(value)}; allowed: a file inside it")
    if not is_file:
        raise ValueError(f"no such file: {quote(value)}; allowed: a file inside the ensemble folder")
    return path


def read_file(path: Path) -> bytes:
    """Read a file that is no model's weights; raises OSError, also for what has no end or never begins, as devices and pipes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > MOST_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MOST_BYTES} bytes", str(path))
    return path.read_bytes()


def read_json(path: Path, *, is_optional: bool = False) -> dict[str, Any]:
    """Read a JSON object, empty where an optional file is missing; raises ValueError."""
    if is_optional and not path.is_file():
        return {}
    document = read_document(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path.name}: found {type(document).__name__}; allowed: a JSON object")
    return document


def read_document(path: Path) -> object:
    """Read JSON; raises ValueError."""
    try:
        found: object = json.loads(read_file(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read ({outline(error)})") from None
    return found


def _check_file(value: str, info: ValidationInfo) -> str:
    find_file((info.context or {})["folder"], value)
    return value


FolderFile = Annotated[str, AfterValidator(_check_file)]


class Strict(BaseModel):
    """A table of the file: unknown keys and wrong types are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

"""Everything that can go wrong: the exceptions of `twinfer.errors`, which callers get again; and what ends a loading.

Raise the narrowest class; its text says field, found, allowed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from twinfer.errors import (
    Cancelled,
    DeadlinePassed,
    Draining,
    FusionConflict,
    InternalError,
    InvalidInput,
    InvalidOption,
    InvalidRequest,
    Loading,
    MalformedMessage,
    MemberFailed,
    MemberLate,
    MemberOff,
    MissingInput,
    NotFinite,
    NothingToFuse,
    Overloaded,
    PermissionDenied,
    Reason,
    Stage,
    TwinferError,
    Unauthenticated,
    Unavailable,
    UnknownEnsemble,
    UnknownInput,
    UnknownMember,
    Unsupported,
)

__all__ = [
    "Cancelled", "DeadlinePassed", "Draining", "FusionConflict", "InternalError", "InvalidEnsemble", "InvalidInput",
    "InvalidOption", "InvalidRequest", "Loading", "MalformedMessage", "MemberFailed", "MemberLate", "MemberOff", "MissingInput",
    "NotFinite", "NothingToFuse", "Overloaded", "PermissionDenied", "Reason", "Stage", "TwinferError", "Unauthenticated",
    "Unavailable", "UnknownEnsemble", "UnknownInput", "UnknownMember", "Unsupported", "UntrustedCode", "detach", "outline", "quote",
    "without_panics",
]  # fmt: skip

MAX_ERROR_CHARS = 400
E = TypeVar("E", bound=TwinferError)


class InvalidEnsemble(Exception):
    """An ensemble folder cannot be served: says the key's path, what was found and what would be right."""


class UntrustedCode(InvalidEnsemble):
    """A file of the folder is a program, and the operator has not said that it may run."""


def quote(value: object, max_chars: int = 60) -> str:
    """Quote what a caller sent, at most its first part: a status message that repeats it whole may not be receivable."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # Python writes neither numbers of thousands of digits nor lists of lists without end
        text = f"{type(value).__name__} too long to be shown"
    return repr(text if len(text) <= max_chars else text[:max_chars] + "...")


def outline(error: BaseException) -> str:
    """Return what a library's error says on one line, at most its first part: some list every weight of a model."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."
    # A damaged file may have half a character, or what moves a terminal's cursor.
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@contextmanager
def without_panics() -> Iterator[None]:
    """Raise what makes tokenizers panic, which is no Exception, as a ValueError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"it panics: {outline(error)}") from None


def detach(error: E) -> E:
    """Return an error without its traceback and causes, whose frames would keep the request's bytes in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)

"""The lines of a drafted `ensemble.toml`, which explain themselves."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .member import MemberDraft, plain_name

ASKED = "?"
"""Stands for what is not known: of no type that a key has, and the name of no output, so that the file is refused with it."""
NOTES = {
    "image": "JPEG, PNG, ... or pixels; size, mean and std are read from the model's directory",
    "text": "a text; tokenizer, length and padding are read from the model's directory",
    "tensor": "a ready tensor of this dtype and shape",
}
"""What the file says of an input, by its kind."""
FUSION_NOTES = {
    "scale": "cosines times this, as the model was trained",
    "bias": "plus this",
    "activation": "one probability for each",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A value that no source says: `why` is the comment beside its key."""

    why: str


def write_lines(folder: Path, drafts: Sequence[MemberDraft], method: str, has_labels: bool) -> Iterator[str]:
    """Yield the file's lines."""
    yield "# An ensemble of twinfer: every member looks at the same request, and their fusion answers."
    path = _show_path(folder)
    yield f"# Check it with `twinfer validate {path}`, serve it with `twinfer serve {path}`."
    yield ""
    yield f"name = {quote_toml(plain_name(folder.resolve().name, '-', 'ensemble'))}"
    yield "version = 1                  # an integer; raise it when answers may change"
    yield f'task = "{drafts[0].task}"'
    if has_labels:
        yield 'labels = "labels.txt"        # one class a line, in the order of the models\' outputs'
    yield 'policy = "best_effort"       # answer with the members that are there; "require_all" would rather fail'
    for draft in drafts:
        yield ""
        yield f"[members.{draft.name}]"
        yield f"model = {quote_toml(draft.model)}"
        for name, table in draft.inputs.items():
            yield f"[members.{draft.name}.input.{name}]     # the request's name for this input"
            yield from _write_table(table, {"kind": NOTES[str(table["kind"])], "max_samples": "a list of texts to compare"})
        if draft.output:
            yield f"[members.{draft.name}.output]"
            yield from _write_table(draft.output, {"kind": "what the output means", "select": "which of the outputs"})
    yield ""
    yield "[fusion]                     # docs/fusion.md lists the methods by task; `twinfer fit` learns one from labelled rows"
    yield from _write_table({"method": method} | dict(drafts[0].fusion), FUSION_NOTES)
    yield ""
    yield "[batching]"
    yield "max_batch_size = 16          # the most requests that compute together; a lone request never waits for others"


def list_asked(drafts: Sequence[MemberDraft]) -> Iterator[str]:
    """Yield what the drafts leave to the user: the key's path, and why it is not known."""
    for draft in drafts:
        tables = {f"members.{draft.name}.input.{name}": table for name, table in draft.inputs.items()}
        for path, table in (tables | {f"members.{draft.name}.output": draft.output}).items():
            yield from (f"{path}.{key}: {value.why}" for key, value in table.items() if isinstance(value, Asked))
    yield from (f"fusion.{key}: {value.why}" for key, value in drafts[0].fusion.items() if isinstance(value, Asked))


def quote_toml(text: str) -> str:
    """Return a text as a basic string of TOML, which is JSON's but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def comment(text: str) -> Iterator[str]:
    """Yield a text of any lines as comments."""
    for line in text.splitlines():
        yield "# " + "".join(letter if letter.isprintable() else " " for letter in line)


def _show_path(folder: Path) -> str:
    """Return a path as a shell takes it, on one line."""
    quoted = shlex.quote(str(folder))
    return quoted if quoted.isprintable() else "FOLDER"


def _write_table(table: Mapping[str, object], notes: Mapping[str, str]) -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Asked):
            yield f'{key} = "{ASKED}"'.ljust(28) + f" # write it here: {' '.join(value.why.split())}"
            continue
        text = f"{key} = {_write_value(value)}"
        yield f"{text:<28} # {notes[key]}" if key in notes else text


def _write_value(value: object) -> str:
    """Return a value as TOML has it: a text, a list of numbers, a number, true or false."""
    if isinstance(value, str):
        return quote_toml(value)
    return json.dumps(value)

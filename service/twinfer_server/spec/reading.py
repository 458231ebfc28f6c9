"""From the folder to its spec and labels, with every fault named by its key's path."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from ..errors import InvalidEnsemble, quote
from .directory import MULTI_LABEL, PREFIX, find_directory, has_several_labels, name_classes
from .ensemble import EnsembleSpec
from .files import Fault, read_json

SPEC_FILE = "ensemble.toml"
_TOML_WORDS = {
    "missing": "a value; the key is required",
    "extra_forbidden": "no key of this name",
    "model_type": "a table",
    "dict_type": "a table",
    "model_attributes_type": "a table",
    "list_type": "an array",
}
"""What is allowed, where pydantic would speak of Python rather than of TOML."""


def read_spec(folder: Path) -> EnsembleSpec:
    """Read and check `ensemble.toml` in `folder`; raises InvalidEnsemble that lists every fault with its key's path."""
    path = folder / SPEC_FILE
    if not path.is_file():
        raise InvalidEnsemble(f"{folder}: no {SPEC_FILE} here; allowed: an ensemble folder")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tomllib nests, and reads long numbers, until Python stops it
        raise InvalidEnsemble(f"{path}: not TOML: {error}") from error
    try:
        return EnsembleSpec.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise InvalidEnsemble("\n".join(f"{path}: {line}" for line in describe_faults(error))) from None


def describe_faults(error: ValidationError) -> Iterator[str]:
    """Yield, for each fault of a spec, one line with its key's path, what was found and what is allowed, in TOML's words."""
    for fault in error.errors(include_url=False):
        path, kind, value = list(fault["loc"]), fault["type"], fault["input"]
        if len(path) > 4 and path[2] == "input":
            del path[4]  # pydantic names the kind that it picked; the file has no such key
        found = quote(value) if isinstance(value, str) else quote(value)[1:-1]
        allowed = _TOML_WORDS.get(kind) or fault["msg"].removeprefix("Input should be ")
        if kind == "missing":
            found = "nothing"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            path.append("kind")
            found, allowed = quote(value["kind"]) if "kind" in value else "nothing", "'image', 'text', 'tensor', 'output'"
        # As TOML writes it: a key of other characters in quotes, so that none breaks the line or fills the screen.
        key = ".".join(part if re.fullmatch(r"[\w[\]-]{1,64}", part) else quote(part) for part in map(str, path))
        cause = fault["ctx"]["error"] if kind == "value_error" else None  # in our own words, which say found and allowed
        joint = "" if not key else "." if isinstance(cause, Fault) else ": "
        yield f"{key}{joint}{cause or f'found {found}; allowed: {allowed}'}"


def read_labels(folder: Path, spec: EnsembleSpec) -> tuple[str, ...]:
    """Read the class labels, one a line, by index; empty where the ensemble has none; raises InvalidEnsemble."""
    if spec.labels is None:
        return ()
    path = folder / spec.labels
    where = f"{folder / SPEC_FILE}: labels: {path}"
    try:
        labels = path.read_text(encoding="utf-8-sig").splitlines()  # with the mark that some editors put before it, or without
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidEnsemble(f"{where} cannot be read: {error}; allowed: UTF-8") from error
    lines: dict[str, int] = {}
    for line, label in enumerate(labels, 1):
        if not label.strip():
            raise InvalidEnsemble(f"{where}, line {line}: found nothing; allowed: a label")
        if lines.setdefault(label, line) != line:
            raise InvalidEnsemble(f"{where}, line {line}: found {quote(label)}, as in line {lines[label]}; allowed: another label")
    return tuple(labels)


def check_classes(folder: Path, spec: EnsembleSpec, labels: Sequence[str]) -> None:
    """Refuse a classifier of several labels where a sample has one class, and the ensemble's classes in another order.

    The members' Hugging Face directories show both. Every member is compared with `labels`, the ensemble's, and with the members
    before it; names that the other has not say nothing about the order. Raises InvalidEnsemble.
    """
    orders: dict[str, Sequence[str]] = {quote(spec.labels): labels}
    for name, member in spec.members.items():
        if not member.model.startswith(PREFIX) or member.output.kind not in ("logits", "detections"):
            continue
        found = f"members.{name}.model: found {quote(member.model)}"
        config = read_json(find_directory(folder, member.model) / "config.json")
        if spec.task == "classification" and has_several_labels(config):
            allowed = "task 'multi_label', or a model that gives a sample one class"
            raise InvalidEnsemble(f"{found}, whose problem_type is {MULTI_LABEL!r}, for task {spec.task!r}; allowed: {allowed}")
        names = name_classes(config)
        for source, order in orders.items():
            folded, expected = ([name.casefold() for name in some] for some in (names, order))
            if sorted(folded) == sorted(expected) and folded != expected:
                index = next(at for at, name in enumerate(folded) if name != expected[at])
                allowed = f"{quote(order[index])}, for {source} has the same classes in another order"
                raise InvalidEnsemble(f"{found}, whose class {index} is {quote(names[index])}; allowed: {allowed}")
        orders[f"members.{name}"] = names

"""From the folder to its spec and labels, with every fault named by its key's path."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidEnsemble, outline, quote
from .directory import (
    MULTI_LABEL,
    PREFIX,
    REGRESSION,
    SINGLE_LABEL,
    count_labels,
    find_activation,
    find_directory,
    find_output_kind,
    has_classifier,
    has_several_labels,
    name_classes,
    read_config,
)
from .ensemble import EnsembleSpec, Task
from .files import Fault, read_file
from .sentences import read_sentences

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
        document = tomllib.loads(read_file(path).decode())
    except (OSError, ValueError, RecursionError) as error:  # tomllib nests, and reads long numbers, until Python stops it
        raise InvalidEnsemble(f"{path}: not TOML: {outline(error)}") from error
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
        labels = read_file(path).decode("utf-8-sig").splitlines()  # with the mark that some editors put before it, or without
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
    """Refuse a head for another task than the ensemble's, and the ensemble's classes in another order; raises InvalidEnsemble.

    The members' Hugging Face directories show both. Every member is compared with `labels`, the ensemble's, and with the members
    before it; names that the other has not say nothing about the order.
    """
    orders: dict[str, Sequence[str]] = {quote(spec.labels): labels}
    for name, member in spec.members.items():
        if not member.model.startswith(PREFIX):
            continue
        found = f"members.{name}.model: found {quote(member.model)}"
        directory = find_directory(folder, member.model)
        config = read_config(directory)
        sentences = read_sentences(directory)
        if spec.task == "similarity" and sentences and not sentences.is_compared_by_cosine:
            what = f"whose similarity_fn_name is {quote(sentences.similarity)}"
            raise InvalidEnsemble(f"{found}, {what}, for task 'similarity'; allowed: 'cosine', or task 'embedding'")
        if member.output.kind not in ("logits", "detections", "tensor"):
            continue
        if has_classifier(config) and (fault := _find_task_fault(config, spec.task, member.output.kind)):
            raise InvalidEnsemble(f"{found}, {fault}")
        if member.output.kind == "tensor":
            continue
        names = name_classes(config)
        for source, order in orders.items():
            folded, expected = ([name.casefold() for name in some] for some in (names, order))
            if sorted(folded) == sorted(expected) and folded != expected:
                index = next(at for at, name in enumerate(folded) if name != expected[at])
                allowed = f"{quote(order[index])}, for {source} has the same classes in another order"
                raise InvalidEnsemble(f"{found}, whose class {index} is {quote(names[index])}; allowed: {allowed}")
        orders[f"members.{name}"] = names


def _find_task_fault(config: Mapping[str, Any], task: Task, kind: str) -> str:
    """Return what a classifier's or a regressor's configuration has against a task, and what would be right; "" for nothing."""
    is_number = find_output_kind(config) == "tensor"
    number = "task 'tensor' with output.kind 'tensor', where it is the number itself"
    problem = f"whose problem_type is {quote(config.get('problem_type'))}"
    if task not in ("classification", "multi_label") or (is_number and task == "multi_label" and kind == "logits"):
        return ""  # what the ensemble's file says of a number, such as that its sigmoid is meant, counts
    if config.get("problem_type") == REGRESSION:
        return f"{problem}, for task {task!r}; allowed: {number}"
    if is_number:
        said = f"whose activation_fn is {quote(find_activation(config))} for its one logit"
        return f"{said}, for task {task!r}; allowed: {number}; or task 'multi_label' with output.kind 'logits', its sigmoid"
    if task == "multi_label":
        return "" if config.get("problem_type") != SINGLE_LABEL else f"{problem}, for task {task!r}; allowed: task 'classification'"
    if count_labels(config) == 1:
        allowed = "task 'multi_label', where it is a probability by the sigmoid"
        return f"which gives one logit, for task {task!r}; allowed: {allowed}; or {number}"
    if has_several_labels(config):
        said = problem if config.get("problem_type") == MULTI_LABEL else "whose activation_fn is 'Sigmoid'"
        return f"{said}, for task {task!r}; allowed: task 'multi_label', or a model that gives a sample one class"
    return ""

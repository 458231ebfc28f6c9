"""Classes: what the members' Hugging Face directories say of them has to fit the ensemble; no shape of an output shows it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidEnsemble, quote
from .directory import PREFIX, find_directory, read_config
from .ensemble import EnsembleSpec

MULTI_LABEL = "multi_label_classification"


def has_several_labels(config: Mapping[str, Any]) -> bool:
    """Whether a classifier with this configuration gives every label a logit of its own, rather than one class for a sample."""
    return config.get("problem_type") == MULTI_LABEL


def name_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the names of a configuration's classes, one line each, by index; empty where it has none.

    A name that several classes bear (ImageNet's two cranes) gets each one's number behind it.
    """
    found = config.get("id2label")
    if not isinstance(found, dict) or not all(str(key).isdecimal() for key in found):
        return ()
    names = {key: " ".join(str(found[key]).split()) or str(key) for key in sorted(found, key=int)}
    counts = Counter(names.values())
    return tuple(f"{name} ({key})" if counts[name] > 1 else name for key, name in names.items())


def check_classes(folder: Path, spec: EnsembleSpec, labels: Sequence[str]) -> None:
    """Refuse a classifier of several labels where a sample has one class, and the ensemble's classes in another order.

    `labels` are the ensemble's; every member is compared with them and with the members before it. Names that the other has not
    say nothing about the order, for people call a class as they like. Raises InvalidEnsemble.
    """
    orders: dict[str, Sequence[str]] = {quote(spec.labels): labels}
    for name, member in spec.members.items():
        if not member.model.startswith(PREFIX) or member.output.kind not in ("logits", "detections"):
            continue
        found = f"members.{name}.model: found {quote(member.model)}"
        config = read_config(find_directory(folder, member.model))
        if spec.task == "classification" and has_several_labels(config):
            raise InvalidEnsemble(
                f"{found}, whose problem_type is {MULTI_LABEL!r}, for task {spec.task!r}; "
                "allowed: task 'multi_label', or a model that gives a sample one class"
            )
        names = name_classes(config)
        for source, order in orders.items():
            if (index := _find_crossing(names, order)) is not None:
                allowed = f"{quote(order[index])}, for {source} has the same classes in another order"
                raise InvalidEnsemble(f"{found}, whose class {index} is {quote(names[index])}; allowed: {allowed}")
        orders[f"members.{name}"] = names


def _find_crossing(names: Sequence[str], order: Sequence[str]) -> int | None:
    """Find the first class in which two orders of the same names differ; None where they do not, or the names are others."""
    one, other = ([name.casefold() for name in some] for some in (names, order))
    if sorted(one) != sorted(other):
        return None
    return next((index for index, name in enumerate(one) if name != other[index]), None)

"""Classes: what the members' Hugging Face directories say of them has to fit the ensemble; no shape of an output shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidEnsemble, quote
from .directory import PREFIX, find_directory, read_config
from .ensemble import EnsembleSpec

MULTI_LABEL = "multi_label_classification"


def has_several_labels(config: Mapping[str, Any]) -> bool:
    """Whether a classifier with this configuration gives every label a logit of its own, rather than one class for a sample."""
    return config.get("problem_type") == MULTI_LABEL


def check_classes(folder: Path, spec: EnsembleSpec) -> None:
    """Refuse a classifier of several labels where a sample has one class; raises InvalidEnsemble."""
    for name, member in spec.members.items():
        if not member.model.startswith(PREFIX) or member.output.kind != "logits":
            continue
        config = read_config(find_directory(folder, member.model))
        if spec.task == "classification" and has_several_labels(config):
            raise InvalidEnsemble(
                f"members.{name}.model: found {quote(member.model)}, whose problem_type is {MULTI_LABEL!r}, for task "
                f"{spec.task!r}; allowed: task 'multi_label', or a model that gives a sample one class"
            )

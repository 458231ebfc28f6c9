"""The kinds of input: one file each, found by the spec's `kind` in one table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..spec import EnsembleSpec, ImageInputSpec, TensorInputSpec, TextInputSpec, UpstreamInputSpec
from .fed import FedInput, Feed, OutputInput
from .image import ImageInput
from .intake import FedCount, Intake, MemberInputs
from .kind import InputKind, InputLimits
from .staging import Staging
from .tensor import TensorInput
from .text import TextInput

INPUT_KINDS: Mapping[str, Callable[[str, str, Any, Path, InputLimits], InputKind[Any]]] = {
    "image": ImageInput,
    "text": TextInput,
    "tensor": TensorInput,
}


def make_input(
    member: str,
    name: str,
    spec: ImageInputSpec | TextInputSpec | TensorInputSpec,
    folder: Path,
    limits: InputLimits,
) -> InputKind[Any]:
    """Make the input `name` of `member`; raises InvalidEnsemble where a file that it needs is no good."""
    return INPUT_KINDS[spec.kind](f"members.{member}.input.{name}", name, spec, folder, limits)


def make_intake(spec: EnsembleSpec, folder: Path, limits: InputLimits) -> Intake:
    """Make the intake of an ensemble without loading its models; raises InvalidEnsemble as `make_input` does."""
    names = list(spec.members)
    return Intake(
        spec,
        [
            [
                FedCount(name, names.index(kind.member), 1)
                if isinstance(kind, UpstreamInputSpec)
                else make_input(member, name, kind, folder, limits)
                for name, kind in member_spec.input.items()
            ]
            for member, member_spec in spec.members.items()
        ],
    )


__all__ = [
    "INPUT_KINDS",
    "FedCount",
    "FedInput",
    "Feed",
    "InputKind",
    "InputLimits",
    "Intake",
    "MemberInputs",
    "OutputInput",
    "Staging",
    "make_input",
    "make_intake",
]

"""What an ensemble folder says: `ensemble.toml`, parsed and checked before anything is loaded."""

from .directory import PREFIX, complete_table, find_directory, find_output_kind, has_several_labels, name_classes
from .ensemble import BatchingSpec, CascadeSpec, EnsembleSpec, FusionSpec, Task
from .files import NAME_PATTERN, LeavesFolder, find_file, read_json
from .members import (
    ImageInputSpec,
    InputSpec,
    MemberSpec,
    OutputSpec,
    RequestInputSpec,
    TensorInputSpec,
    TextInputSpec,
    UpstreamInputSpec,
)
from .reading import SPEC_FILE, check_classes, describe_faults, read_labels, read_spec

__all__ = [
    "NAME_PATTERN",
    "PREFIX",
    "SPEC_FILE",
    "BatchingSpec",
    "CascadeSpec",
    "EnsembleSpec",
    "FusionSpec",
    "ImageInputSpec",
    "InputSpec",
    "LeavesFolder",
    "MemberSpec",
    "OutputSpec",
    "RequestInputSpec",
    "Task",
    "TensorInputSpec",
    "TextInputSpec",
    "UpstreamInputSpec",
    "check_classes",
    "complete_table",
    "describe_faults",
    "find_directory",
    "find_file",
    "find_output_kind",
    "has_several_labels",
    "name_classes",
    "read_json",
    "read_labels",
    "read_spec",
]

"""What an ensemble folder says: `ensemble.toml`, parsed and checked before anything is loaded."""

from .directory import (
    PREFIX,
    complete_table,
    find_directory,
    find_model,
    find_output_kind,
    has_several_labels,
    name_classes,
    read_config,
    uses_head,
)
from .ensemble import BatchingSpec, CascadeSpec, EnsembleSpec, FusionSpec, Task
from .files import NAME_PATTERN, LeavesFolder, find_file, read_file, read_json
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
from .sentences import Sentences, Step, read_sentences
from .tokenizer import has_tokenizer, open_tokenizer

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
    "Sentences",
    "Step",
    "Task",
    "TensorInputSpec",
    "TextInputSpec",
    "UpstreamInputSpec",
    "check_classes",
    "complete_table",
    "describe_faults",
    "find_directory",
    "find_file",
    "find_model",
    "find_output_kind",
    "has_several_labels",
    "has_tokenizer",
    "name_classes",
    "open_tokenizer",
    "read_config",
    "read_file",
    "read_json",
    "read_labels",
    "read_sentences",
    "read_spec",
    "uses_head",
]

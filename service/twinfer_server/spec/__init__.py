"""What an ensemble folder says: `ensemble.toml`, parsed and checked before anything is loaded."""

from .classes import check_classes
from .directory import find_directory
from .ensemble import BatchingSpec, EnsembleSpec, Task
from .files import NAME_PATTERN, LeavesFolder, find_file
from .fusion import CascadeSpec, FusionSpec
from .inputs import CropsInputSpec, FedInputSpec, ImageInputSpec, OutputInputSpec, RequestInputSpec, TensorInputSpec, TextInputSpec
from .members import MemberSpec, OutputSpec
from .reading import SPEC_FILE, describe_faults, read_labels, read_spec

__all__ = [
    "NAME_PATTERN",
    "SPEC_FILE",
    "BatchingSpec",
    "CascadeSpec",
    "CropsInputSpec",
    "EnsembleSpec",
    "FedInputSpec",
    "FusionSpec",
    "ImageInputSpec",
    "LeavesFolder",
    "MemberSpec",
    "OutputInputSpec",
    "OutputSpec",
    "RequestInputSpec",
    "Task",
    "TensorInputSpec",
    "TextInputSpec",
    "check_classes",
    "describe_faults",
    "find_directory",
    "find_file",
    "read_labels",
    "read_spec",
]

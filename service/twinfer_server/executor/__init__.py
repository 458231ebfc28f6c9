"""The executor: members, staging buffers and batches; what is computed, on which stream, and what became of it."""

from .batch import Batch, Excluded
from .cascade import escalate
from .ensemble import Ensemble
from .fusion_changes import FusionChange, FusionVersions
from .fusion_versions import FusionVersion
from .latency import Bucket, LatencyTable
from .loading import load_ensemble
from .member import Member
from .memory import MEGABYTE, MemberMemory, check_budget
from .results import STATE_OF_ERROR, find_refusal, fusion_failures, make_responses
from .run import MemberRun
from .warm_up import Measurement, make_synthetic_request, run_synthetic, warm_up

__all__ = [
    "MEGABYTE",
    "STATE_OF_ERROR",
    "Batch",
    "Bucket",
    "Ensemble",
    "Excluded",
    "FusionChange",
    "FusionVersion",
    "FusionVersions",
    "LatencyTable",
    "Measurement",
    "Member",
    "MemberMemory",
    "MemberRun",
    "check_budget",
    "escalate",
    "find_refusal",
    "fusion_failures",
    "load_ensemble",
    "make_responses",
    "make_synthetic_request",
    "run_synthetic",
    "warm_up",
]

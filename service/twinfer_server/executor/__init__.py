"""The ensemble: members, slots, plans and flights; what is computed, on which lane, and what became of it."""

from .answers import answer_rows, fusion_failure
from .bucket import Bucket
from .cascade import pending_members
from .crew import FusionVersion
from .ensemble import Ensemble
from .execution import Plan
from .flight import Flight, LeftOut
from .loading import load_ensemble
from .member import Member
from .memory import MEGABYTE, MemberMemory, check_budget, measure_memory
from .plan_cache import read_times, write_times
from .run import Run
from .slot import Slot
from .times import BucketTimes
from .trial import Trial, fly_blank, make_blank_row
from .versions import FusionChange, FusionVersions
from .warmup import warm_up

__all__ = [
    "MEGABYTE",
    "Bucket",
    "BucketTimes",
    "Ensemble",
    "Flight",
    "FusionChange",
    "FusionVersion",
    "FusionVersions",
    "LeftOut",
    "Member",
    "MemberMemory",
    "Plan",
    "Run",
    "Slot",
    "Trial",
    "answer_rows",
    "check_budget",
    "fly_blank",
    "fusion_failure",
    "load_ensemble",
    "make_blank_row",
    "measure_memory",
    "pending_members",
    "read_times",
    "warm_up",
    "write_times",
]

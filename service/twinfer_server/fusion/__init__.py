"""How the members' outputs become one answer: methods, weights and disagreement, on whatever device the outputs lie.

No code in this folder waits for the device or lets a value decide a shape, so that a CUDA graph can hold any fusion.
"""

from .attribution import attribution_delta
from .detection import pack_detections
from .fitted import FITTED_FILE, Fitted, read_fitted, read_fitted_method, use_fitted, write_fitted
from .fusion import MAX_MAGNITUDE, Fusion, FusionResult, renormalise
from .opinions import ROUNDING, OpinionFusion, StackingHead, flatten_questions, stacking_features
from .pools import Pool, log_opinion_pool, maximum, sharpen, weighted_mean
from .registry import METHODS, build_fusion, find_method

__all__ = [
    "FITTED_FILE",
    "MAX_MAGNITUDE",
    "METHODS",
    "ROUNDING",
    "Fitted",
    "Fusion",
    "FusionResult",
    "OpinionFusion",
    "Pool",
    "StackingHead",
    "attribution_delta",
    "build_fusion",
    "find_method",
    "flatten_questions",
    "log_opinion_pool",
    "maximum",
    "pack_detections",
    "read_fitted",
    "read_fitted_method",
    "renormalise",
    "sharpen",
    "stacking_features",
    "use_fitted",
    "weighted_mean",
    "write_fitted",
]

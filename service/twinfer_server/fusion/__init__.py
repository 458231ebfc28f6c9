"""How the members' outputs become one answer: methods, weights and disagreement, on whatever device the outputs lie.

No code in this folder waits for the device or lets a value decide a shape, so that a CUDA graph can hold any fusion.
"""

from .attribution import attribution_delta
from .detection import best_boxes, measure_overlaps, pack_detections, weighted_boxes_fusion
from .fitted import FITTED_FILE, Fitted, read_fitted, read_fitted_method, use_fitted, write_fitted
from .fusion import MAX_MAGNITUDE, Fusion, FusionResult, renormalise
from .opinions import ROUNDING, OpinionFusion, StackingHead, flatten_questions, stacking_features
from .pools import Pool, log_opinion_pool, maximum, measure_disagreement, reciprocal_rank, sharpen, weighted_mean
from .registry import METHODS, Method, build_fusion, find_method
from .similarity import match, measure_cosines
from .tensors import concatenation, mean_tensor

__all__ = [
    "FITTED_FILE",
    "MAX_MAGNITUDE",
    "METHODS",
    "ROUNDING",
    "Fitted",
    "Fusion",
    "FusionResult",
    "Method",
    "OpinionFusion",
    "Pool",
    "StackingHead",
    "attribution_delta",
    "best_boxes",
    "build_fusion",
    "concatenation",
    "find_method",
    "flatten_questions",
    "log_opinion_pool",
    "match",
    "maximum",
    "mean_tensor",
    "measure_cosines",
    "measure_disagreement",
    "measure_overlaps",
    "pack_detections",
    "read_fitted",
    "read_fitted_method",
    "reciprocal_rank",
    "renormalise",
    "sharpen",
    "stacking_features",
    "use_fitted",
    "weighted_boxes_fusion",
    "weighted_mean",
    "write_fitted",
]

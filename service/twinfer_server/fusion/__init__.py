"""How the members' outputs become one answer: methods, weights and disagreement, on whatever device the outputs lie.

Everything here is captured with the flight: no code in this folder waits for the device or lets a value decide a shape.
"""

from .attribution import moved
from .boxes import best_boxes, measure_overlaps, nms, weighted_boxes_fusion
from .disagreement import measure_disagreement
from .embedding import concatenation
from .fitted import FITTED_FILE, Fitted, read_fitted, read_fitted_method, use_fitted, write_fitted
from .fusion import Fused, Fusion
from .method import METHODS, Method, build_fusion, find_method
from .opinion import ROUNDING, OpinionFusion, flatten_questions
from .pool import log_opinion_pool, maximum, reciprocal_rank, sharpen, weighted_mean
from .similarity import match, measure_cosines
from .stacking import StackingHead, stacking_features
from .tensor import mean_tensor
from .voters import list_voters
from .weights import renormalise

__all__ = [
    "FITTED_FILE",
    "METHODS",
    "ROUNDING",
    "Fitted",
    "Fused",
    "Fusion",
    "Method",
    "OpinionFusion",
    "StackingHead",
    "best_boxes",
    "build_fusion",
    "concatenation",
    "find_method",
    "flatten_questions",
    "list_voters",
    "log_opinion_pool",
    "match",
    "maximum",
    "mean_tensor",
    "measure_cosines",
    "measure_disagreement",
    "measure_overlaps",
    "moved",
    "nms",
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

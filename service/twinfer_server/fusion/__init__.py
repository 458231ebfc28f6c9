"""How the members' outputs become one answer: methods, weights and disagreement, on whatever device the outputs lie.

Everything here is captured with the flight: no code in this folder waits for the device or lets a value decide a shape.
"""

from .disagreement import measure_disagreement
from .embedding import concatenation
from .fusion import Fused, Fusion
from .influence import moved
from .method import METHODS, Method, build_fusion, find_method
from .pool import log_opinion_pool, maximum, sharpen, weighted_mean
from .weights import renormalise

__all__ = [
    "METHODS",
    "Fused",
    "Fusion",
    "Method",
    "build_fusion",
    "concatenation",
    "find_method",
    "log_opinion_pool",
    "maximum",
    "measure_disagreement",
    "moved",
    "renormalise",
    "sharpen",
    "weighted_mean",
]

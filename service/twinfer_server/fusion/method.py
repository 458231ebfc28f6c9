"""The fusion methods by name, and how an ensemble's spec becomes a fusion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..spec import EnsembleSpec, FusionSpec, Task
from .boxes import nms, weighted_boxes_fusion
from .compatibility import check_crops, check_members, check_pair
from .construction import (
    Parts,
    build_concatenation,
    build_crops,
    build_detection,
    build_mean_tensor,
    build_pool,
    build_reciprocal_rank,
    build_similarity,
    build_stacking,
)
from .fitted import Fitted, use_fitted
from .fusion import Fusion
from .pool import Pool, log_opinion_pool, maximum, weighted_mean


@dataclass(frozen=True, slots=True)
class Method:
    """A way to fuse: how it is built for each task that it serves, which keys of `[fusion]` it takes, what it asks of members."""

    builds: Mapping[Task, Callable[[Parts], Fusion]]
    takes: frozenset[str]
    check: Callable[[EnsembleSpec], None] = check_members

    @property
    def takes_weights(self) -> bool:
        """Whether members can weigh differently."""
        return "weights" in self.takes


_POOL_KEYS = frozenset({"weights", "temperatures", "fitted"})
_BOX_KEYS = frozenset({"iou", "min_score", "max_boxes"})


def _pool_opinions(pool: Pool) -> dict[Task, Callable[[Parts], Fusion]]:
    return dict.fromkeys(("classification", "multi_label"), partial(build_pool, pool))


METHODS: dict[str, Method] = {
    "weighted_mean": Method({**_pool_opinions(weighted_mean), "tensor": build_mean_tensor}, _POOL_KEYS),
    "log_opinion_pool": Method(_pool_opinions(log_opinion_pool), _POOL_KEYS),
    "maximum": Method(_pool_opinions(maximum), _POOL_KEYS - {"weights"}),
    "reciprocal_rank": Method({"classification": build_reciprocal_rank}, frozenset({"weights", "temperatures", "k"})),
    "stacking": Method(dict.fromkeys(("classification", "multi_label"), build_stacking), frozenset({"temperatures", "fitted"})),
    "concatenation": Method({"embedding": build_concatenation}, frozenset({"weights", "projection"})),
    "cosine": Method({"similarity": build_similarity}, frozenset({"query", "texts", "scale", "bias", "activation"}), check_pair),
    "nms": Method({"detection": partial(build_detection, nms)}, _BOX_KEYS),
    "weighted_boxes": Method({"detection": partial(build_detection, weighted_boxes_fusion)}, _BOX_KEYS | {"weights"}),
    "classify_crops": Method({"detection": build_crops}, frozenset({"temperatures", "min_score", "max_boxes"}), check_crops),
}


def find_method(spec: EnsembleSpec) -> Method:
    """Find the method that the spec names and check that the spec fits it; raises InvalidEnsemble.

    Needs no model: what can be refused before the members are loaded is refused here.
    """
    name = spec.fusion.method
    method = METHODS.get(name)
    if method is None or spec.task not in method.builds:
        allowed = ", ".join(repr(other) for other, entry in METHODS.items() if spec.task in entry.builds)
        why = "" if method is None else f", a method for task {' or '.join(map(repr, method.builds))}"
        raise InvalidEnsemble(f"fusion.method: found {quote(name)}{why}; allowed for task {spec.task!r}: {allowed}")
    for key in FusionSpec.model_fields:
        found = getattr(spec.fusion, key)
        # A tensor has no temperature, though its mean has weights.
        is_taken = key in method.takes and (spec.task != "tensor" or key == "weights")
        if key != "method" and not is_taken and found not in (None, {}):
            raise InvalidEnsemble(f"fusion.{key}: found {quote(found)[1:-1]}; allowed: none, {name!r} takes no {key}")
    method.check(spec)
    return method


def build_fusion(
    spec: EnsembleSpec, shapes: Sequence[tuple[int, ...]], fitted: Fitted | None = None, cached_texts: Tensor | None = None,
    folder: Path | None = None,
) -> Fusion:  # fmt: skip
    """Build the spec's fusion, on the CPU; raises InvalidEnsemble.

    shapes: by member, the shape of one sample's output, as probing it has shown.
    fitted: what `twinfer fit` has learnt; its weights and temperatures count where the spec has none of its own.
    cached_texts: float32 [texts, features], the embeddings of the spec's own texts.
    folder: the ensemble's; needed where the spec names a projection.
    """
    method = find_method(spec)
    if spec.fusion.method == "stacking" and fitted is None:
        raise InvalidEnsemble("fusion.fitted: found nothing; allowed: what `twinfer fit` has written, 'stacking' is learnt")
    return method.builds[spec.task](Parts(use_fitted(spec, fitted), tuple(shapes), fitted, cached_texts, folder))

"""The fusion methods by name, and how an ensemble's spec becomes a fusion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..spec import EnsembleSpec, FusionSpec, Task
from .construction import Parts, build_concatenation, build_pool, build_stacking
from .fitted import Fitted, use_fitted
from .fusion import Fusion
from .pool import log_opinion_pool, maximum, weighted_mean
from .voters import list_voters

OPINIONS = ("logits", "probabilities")


@dataclass(frozen=True, slots=True)
class Method:
    """A way to fuse: how it is built for each task that it serves, and which keys of `[fusion]` it takes.

    `kinds` are the output kinds that the voting members may have; empty where the task says it.
    """

    builds: Mapping[Task, Callable[[Parts], Fusion]]
    takes: frozenset[str]
    kinds: tuple[str, ...] = ()

    @property
    def takes_weights(self) -> bool:
        """Whether members can weigh differently."""
        return "weights" in self.takes


METHODS: dict[str, Method] = {
    "weighted_mean": Method(
        dict.fromkeys(("classification", "multi_label"), partial(build_pool, weighted_mean)),
        frozenset({"weights", "temperatures", "fitted"}),
    ),
    "log_opinion_pool": Method(
        dict.fromkeys(("classification", "multi_label"), partial(build_pool, log_opinion_pool)),
        frozenset({"weights", "temperatures", "fitted"}),
    ),
    "maximum": Method(
        dict.fromkeys(("classification", "multi_label"), partial(build_pool, maximum)),
        frozenset({"temperatures", "fitted"}),
    ),
    "stacking": Method(
        dict.fromkeys(("classification", "multi_label"), build_stacking),
        frozenset({"temperatures", "fitted"}),
    ),
    "concatenation": Method({"embedding": build_concatenation}, frozenset({"weights", "projection"})),
}

KINDS: dict[Task, tuple[str, ...]] = {
    "classification": OPINIONS,
    "multi_label": OPINIONS,
    "embedding": ("embedding",),
    "similarity": ("embedding",),
    "detection": ("detections",),
    "tensor": ("tensor",),
}
"""The output kinds that a task fuses."""


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
        if key != "method" and key not in method.takes and found not in (None, {}):
            raise InvalidEnsemble(f"fusion.{key}: found {quote(found)[1:-1]}; allowed: none, {name!r} takes no {key}")
    _check_kinds(spec, method.kinds or KINDS[spec.task])
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


def _check_kinds(spec: EnsembleSpec, kinds: Sequence[str]) -> None:
    """Refuse output kinds that do not fit, and members that the fusion names although they do not vote."""
    allowed = ", ".join(map(repr, kinds))
    voters = list_voters(spec)
    if not voters:
        raise InvalidEnsemble(f"members: all outputs are of kind 'features'; allowed: at least one of {allowed}")
    names = list(spec.members)
    for name in (names[index] for index in voters):
        kind = spec.members[name].output.kind
        if kind not in kinds:
            raise InvalidEnsemble(
                f"members.{name}.output.kind: found {kind!r}; allowed for task {spec.task!r}: {allowed}, or 'features'"
            )
    for key in ("weights", "temperatures"):
        for name in getattr(spec.fusion, key):
            if names.index(name) not in voters:
                raise InvalidEnsemble(f"fusion.{key}.{name}: the member's output is of kind 'features'; allowed: members that vote")

"""The fusion methods by name, and how an ensemble's spec becomes a fusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from ..errors import InvalidEnsemble, quote
from ..spec import EnsembleSpec
from .fusion import ConcatenationFusion, Fusion, OutputKind, PoolFusion
from .pool import log_opinion_pool, maximum, weighted_mean

Task = Literal["classification", "embedding"]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to fuse: the task it serves, whether it takes weights, how it is built from the members' output kinds."""

    task: Task
    takes_weights: bool
    build: Callable[[Sequence[OutputKind]], Fusion]


METHODS: dict[str, Method] = {
    "weighted_mean": Method("classification", True, partial(PoolFusion, weighted_mean)),
    "log_opinion_pool": Method("classification", True, partial(PoolFusion, log_opinion_pool)),
    "maximum": Method("classification", False, partial(PoolFusion, maximum)),
    "concatenation": Method("embedding", True, ConcatenationFusion),
}

OUTPUT_KINDS: dict[Task, tuple[OutputKind, ...]] = {
    "classification": ("logits", "probabilities"),
    "embedding": ("embedding",),
}


def find_method(spec: EnsembleSpec) -> Method:
    """Find the method that the spec names and check that the spec fits it; raises InvalidEnsemble.

    Needs no model: what can be refused before the members are loaded is refused here.
    """
    name = spec.fusion.method
    method = METHODS.get(name)
    if method is None or method.task != spec.task:
        allowed = ", ".join(repr(other) for other, entry in METHODS.items() if entry.task == spec.task)
        why = "" if method is None else f", a method for task {method.task!r}"
        raise InvalidEnsemble(f"fusion.method: found {quote(name)}{why}; allowed for task {spec.task!r}: {allowed}")
    if spec.fusion.weights and not method.takes_weights:
        raise InvalidEnsemble(f"fusion.weights: found {spec.fusion.weights}; allowed: none, {name!r} takes no weights")
    allowed_kinds = OUTPUT_KINDS[spec.task]
    for member, member_spec in spec.members.items():
        if member_spec.output.kind not in allowed_kinds:
            raise InvalidEnsemble(
                f"members.{member}.output.kind: found {member_spec.output.kind!r}; "
                f"allowed for task {spec.task!r}: {', '.join(map(repr, allowed_kinds))}"
            )
    return method


def build_fusion(spec: EnsembleSpec, features: Sequence[int]) -> Fusion:
    """Build the spec's fusion, on the CPU; raises InvalidEnsemble.

    features: by member, how many classes or features its output has, as probing it has shown.
    """
    method = find_method(spec)
    sizes = dict(zip(spec.members, features, strict=True))
    if spec.task == "classification" and (len(set(features)) > 1 or min(features) < 2):
        raise InvalidEnsemble(f"members: found {sizes} classes; allowed: the same number for all, at least 2")
    return method.build([cast(OutputKind, member.output.kind) for member in spec.members.values()])

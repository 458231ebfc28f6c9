"""The fusion methods by name: what each asks of an ensemble, and how it is built for one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..spec import EnsembleSpec, FusionSpec, ImageInputSpec, Task, UpstreamInputSpec
from .detection import DetectionFusion
from .fitted import REMEDY, Fitted, use_fitted
from .fusion import Fusion
from .opinions import OpinionFusion, StackingHead
from .pools import Pool, log_opinion_pool, maximum, reciprocal_rank, weighted_mean
from .similarity import SimilarityFusion
from .tensors import ConcatenationFusion, TensorFusion, read_projection


@dataclass(frozen=True, slots=True)
class Method:
    """A way to fuse: the tasks that it serves, the keys of `[fusion]` that it takes, and the pool that it is, if it is one."""

    tasks: tuple[Task, ...]
    takes: frozenset[str]
    pool: Pool | None = None

    @property
    def takes_weights(self) -> bool:
        """Whether members can weigh differently."""
        return "weights" in self.takes


_LEARNT = frozenset({"temperatures", "fitted"})
METHODS: Mapping[str, Method] = {
    "weighted_mean": Method(("classification", "multi_label", "tensor"), _LEARNT | {"weights"}, weighted_mean),
    "log_opinion_pool": Method(("classification", "multi_label"), _LEARNT | {"weights"}, log_opinion_pool),
    "maximum": Method(("classification", "multi_label"), _LEARNT, maximum),
    "reciprocal_rank": Method(("classification",), frozenset({"weights", "temperatures", "k"}), reciprocal_rank),
    "stacking": Method(("classification", "multi_label"), _LEARNT),
    "concatenation": Method(("embedding",), frozenset({"weights", "projection"})),
    "cosine": Method(("similarity",), frozenset({"query", "texts", "scale", "bias", "activation"})),
    "weighted_boxes": Method(("detection",), frozenset({"weights", "iou", "min_score", "max_boxes"})),
}
KINDS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("logits", "probabilities"),
    "multi_label": ("logits", "probabilities"),
    "embedding": ("embedding",),
    "similarity": ("embedding",),
    "detection": ("detections",),
    "tensor": ("tensor",),
}
"""The output kinds that a task fuses."""
SIZES: Mapping[Task, tuple[str, int]] = {
    "classification": ("classes", 2),
    "multi_label": ("labels", 1),
    "similarity": ("features", 1),
}
"""Of tasks whose outputs are vectors of one size: what they are of, and how many there are at least."""


def find_method(spec: EnsembleSpec) -> Method:
    """Return the method that the spec names, having checked that the spec fits it; raises InvalidEnsemble.

    Needs no model: what can be refused before the members are loaded is refused here.
    """
    name = spec.fusion.method
    method = METHODS.get(name)
    if method is None or spec.task not in method.tasks:
        allowed = ", ".join(repr(other) for other, entry in METHODS.items() if spec.task in entry.tasks)
        why = "" if method is None else f", a method for task {' or '.join(map(repr, method.tasks))}"
        raise InvalidEnsemble(f"fusion.method: found {quote(name)}{why}; allowed for task {spec.task!r}: {allowed}")
    for key in FusionSpec.model_fields:
        found = getattr(spec.fusion, key)
        # A tensor has no temperature, though its mean has weights.
        is_taken = key in method.takes and (spec.task != "tensor" or key == "weights")
        if key != "method" and not is_taken and found not in (None, {}):
            raise InvalidEnsemble(f"fusion.{key}: found {quote(found)[1:-1]}; allowed: none, {name!r} takes no {key}")
    _check_kinds(spec)
    fused = list(spec.fused_members().values())
    if spec.task == "similarity":
        if len(fused) != 2:
            raise InvalidEnsemble(f"members: {fused} give embeddings; allowed: two that do, one is compared with the other")
        query = spec.fusion.query or fused[0]
        if query not in fused:
            raise InvalidEnsemble(f"fusion.query: found {query!r}, whose output is of kind 'features'; allowed: {fused}")
        fused = [query]
    _check_samples(spec, fused)
    return method


def build_fusion(
    spec: EnsembleSpec, shapes: Sequence[tuple[int, ...]], fitted: Fitted | None = None, cached_texts: Tensor | None = None,
    folder: Path | None = None,
) -> Fusion:  # fmt: skip
    """Build the spec's fusion, on the CPU; raises InvalidEnsemble.

    shapes: by member, the shape of one sample's output.
    fitted: what `twinfer fit` has learnt; its weights and temperatures count where the spec has none of its own.
    cached_texts: float32 [texts, features], the embeddings of the spec's own texts.
    folder: the ensemble's; needed where the spec names a projection.
    """
    method, spec = find_method(spec), use_fitted(spec, fitted)
    fusion, members = spec.fusion, spec.fused_members()
    fused = tuple(members)
    sizes = _check_shapes(spec.task, {name: tuple(shapes[index]) for index, name in members.items()})
    if spec.task == "tensor":
        return TensorFusion(fused)
    if spec.task == "embedding":
        return ConcatenationFusion(fused, read_projection(folder, fusion.projection, sum(sizes)) if fusion.projection else None)
    if spec.task == "similarity":
        query = next((index for index, name in members.items() if name == fusion.query), fused[0])
        return _build_similarity(fusion, query, sum(fused) - query, sizes[0], cached_texts)
    if spec.task == "detection":
        iou = 0.55 if fusion.iou is None else fusion.iou  # what `ensemble-boxes` begins with
        return DetectionFusion(fused, iou, fusion.min_score or 0.0, fusion.max_boxes or 100)
    judge: Pool | StackingHead | None = method.pool if fusion.k is None else partial(reciprocal_rank, k=fusion.k)
    return OpinionFusion(
        judge or _load_head(fitted, len(members), sizes[0]),
        {index: spec.members[name].output.kind for index, name in members.items()},
        [fusion.temperatures.get(name, 1.0) for name in spec.members],
        is_multi_label=spec.task == "multi_label",
        sharpness=fitted.sharpness if fitted else 0.0,
    )


def _build_similarity(fusion: FusionSpec, query: int, other: int, features: int, texts: Tensor | None) -> Fusion:
    if (texts is None) != (fusion.texts is None):
        raise InvalidEnsemble(f"fusion.texts: found {fusion.texts!r} {'without' if texts is None else 'with'} embeddings of texts")
    if texts is not None and (texts.shape[1:] != (features,) or not texts.isfinite().all()):
        raise InvalidEnsemble(f"fusion.texts: embedded as {list(texts.shape)}; allowed: finite numbers, [texts, {features}]")
    is_softmax, scale = fusion.activation != "sigmoid", fusion.scale or 100.0
    return SimilarityFusion(query, other, scale=scale, bias=fusion.bias or 0.0, is_softmax=is_softmax, texts=texts)


def _load_head(fitted: Fitted | None, members: int, outputs: int) -> StackingHead:
    if fitted is None:
        raise InvalidEnsemble("fusion.fitted: found nothing; allowed: what `twinfer fit` has written, 'stacking' is learnt")
    head = StackingHead(members, outputs, fitted.hidden)
    expected, found = ({name: list(one.shape) for name, one in state.items()} for state in (head.state_dict(), fitted.tensors))
    if found != expected:
        raise InvalidEnsemble(f"fusion.fitted: the head's tensors are {found}; allowed: {expected}; {REMEDY}")
    head.load_state_dict(dict(fitted.tensors))
    return head


def _check_kinds(spec: EnsembleSpec) -> None:
    """Refuse output kinds that do not fit the task, and members that `[fusion]` names although they are not fused."""
    fused = spec.fused_members().values()
    allowed = ", ".join(map(repr, KINDS[spec.task]))
    if not fused:
        raise InvalidEnsemble(f"members: all outputs are of kind 'features'; allowed: at least one of {allowed}")
    for name in fused:
        output = spec.members[name].output
        if output.kind not in KINDS[spec.task]:
            found = f"members.{name}.output.kind: found {output.kind!r}"
            raise InvalidEnsemble(f"{found}; allowed for task {spec.task!r}: {allowed}, or 'features'")
        images = sum(isinstance(input_spec, ImageInputSpec) for input_spec in spec.members[name].input.values())
        if output.kind == "detections" and output.box_units == "pixels" and images != 1:
            found = f"'pixels' of a member with {images} images"
            raise InvalidEnsemble(f"members.{name}.output.box_units: found {found}; allowed: of one with one")
    for key in ("weights", "temperatures"):
        for name in getattr(spec.fusion, key):
            if name not in fused:
                found = "a member whose output is of kind 'features'"
                raise InvalidEnsemble(f"fusion.{key}.{name}: found {found}; allowed: members that are fused")


def _check_samples(spec: EnsembleSpec, names: Sequence[str]) -> None:
    """Refuse members that may compute on several samples of a request where the method fuses one output."""
    several: set[str] = set()
    for name, member in spec.members.items():
        for key, input_spec in member.input.items():
            if isinstance(input_spec, UpstreamInputSpec):
                has_several = input_spec.member in several
            else:
                has_several = not isinstance(input_spec, ImageInputSpec) and input_spec.max_samples > 1
            if has_several and name in names:
                allowed = f"one, for {spec.fusion.method!r} fuses one output of this member for a request"
                raise InvalidEnsemble(f"members.{name}.input.{key}: found several samples for a request; allowed: {allowed}")
            if has_several:
                several.add(name)


def _check_shapes(task: Task, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Refuse outputs of shapes, by fused member, that the task cannot fuse; return the sizes of those that are vectors."""
    listed = {name: list(shape) for name, shape in shapes.items()}
    if task == "tensor":
        if any(shape != next(iter(shapes.values())) or math.prod(shape) == 0 for shape in shapes.values()):
            raise InvalidEnsemble(f"members: found outputs of shapes {listed}; allowed: the same shape for all, not empty")
        return []
    what, least = SIZES.get(task, ("features", 1))
    for name, shape in shapes.items():
        is_boxes = len(shape) == 2 and shape[0] > 0 and shape[1] == 6
        if not (is_boxes if task == "detection" else len(shape) == 1 and shape[0] > 0):
            allowed = "[boxes, 6]" if task == "detection" else f"[{what}]"
            raise InvalidEnsemble(f"members.{name}.output: a sample's output has shape {listed[name]}; allowed: {allowed}")
    sizes = {name: shape[0] for name, shape in shapes.items()}
    if task in SIZES and (len(set(sizes.values())) > 1 or min(sizes.values()) < least):
        raise InvalidEnsemble(f"members: found {sizes} {what}; allowed: the same number for all, at least {least}")
    return list(sizes.values())

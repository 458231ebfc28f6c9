"""How each method is built for an ensemble whose members are known."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import InvalidEnsemble
from ..spec import EnsembleSpec
from .boxes import BoxPool
from .compatibility import find_crops
from .detection import IOU, MAX_BOXES, CropsFusion, DetectionFusion
from .embedding import ConcatenationFusion, read_projection
from .fitted import REMEDY, Fitted
from .fusion import Fusion
from .opinion import PoolFusion
from .pool import RANK_CONSTANT, Pool, reciprocal_rank
from .similarity import SimilarityFusion
from .stacking import StackingFusion, StackingHead
from .tensor import TensorFusion
from .voters import list_voters


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a fusion is built from: see `build_fusion`."""

    spec: EnsembleSpec
    shapes: tuple[tuple[int, ...], ...]
    fitted: Fitted | None = None
    cached_texts: Tensor | None = None
    folder: Path | None = None

    @property
    def kinds(self) -> dict[int, str]:
        """The output kinds of the voting members, by member index."""
        members = list(self.spec.members.values())
        return {index: members[index].output.kind for index in list_voters(self.spec)}

    @property
    def temperatures(self) -> list[float]:
        """A temperature for every member, 1 where none is given."""
        return [self.spec.fusion.temperatures.get(name, 1.0) for name in self.spec.members]

    @property
    def is_multi_label(self) -> bool:
        """Whether every output is a question of its own."""
        return self.spec.task == "multi_label"

    def sizes(self, what: str) -> dict[int, int]:
        """Give how many `what` each voting member's output has, by member index; refuses an output that is no vector."""
        names = list(self.spec.members)
        for index in self.kinds:
            if len(self.shapes[index]) != 1 or self.shapes[index][0] < 1:
                raise InvalidEnsemble(
                    f"members.{names[index]}.output: a sample's output has shape {list(self.shapes[index])}; allowed: [{what}]"
                )
        return {index: self.shapes[index][0] for index in self.kinds}

    def same_size(self, what: str, least: int) -> int:
        """Give how many `what` all voting members' outputs have; refuses different numbers, and less than `least`."""
        sizes = self.sizes(what)
        found = {name: sizes[index] for index, name in enumerate(self.spec.members) if index in sizes}
        if len(set(found.values())) > 1 or min(found.values()) < least:
            raise InvalidEnsemble(f"members: found {found} {what}; allowed: the same number for all, at least {least}")
        return next(iter(found.values()))

    def check_boxes(self) -> None:
        """Refuse detections that are no boxes."""
        names = list(self.spec.members)
        for index, kind in self.kinds.items():
            shape = self.shapes[index]
            if kind == "detections" and (len(shape) != 2 or shape[1] != 6 or shape[0] < 1):
                raise InvalidEnsemble(
                    f"members.{names[index]}.output: a sample's output has shape {list(shape)}; allowed: [boxes, 6]"
                )


def build_pool(pool: Pool, parts: Parts) -> Fusion:
    """Build an opinion pool."""
    _count_answers(parts)
    sharpness = parts.fitted.sharpness if parts.fitted else 0.0
    return PoolFusion(pool, parts.kinds, parts.temperatures, is_multi_label=parts.is_multi_label, sharpness=sharpness)


def build_reciprocal_rank(parts: Parts) -> Fusion:
    """Build reciprocal rank fusion."""
    k = parts.spec.fusion.k
    return build_pool(partial(reciprocal_rank, k=RANK_CONSTANT if k is None else k), parts)


def build_stacking(parts: Parts) -> Fusion:
    """Build a stacking head from its fitted state."""
    outputs = _count_answers(parts)
    assert parts.fitted is not None
    head = StackingHead(len(parts.kinds), outputs, parts.fitted.hidden)
    expected = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in parts.fitted.tensors.items()}
    if found != expected:
        raise InvalidEnsemble(f"fusion.fitted: the head's tensors are {found}; allowed: {expected}; {REMEDY}")
    head.load_state_dict(dict(parts.fitted.tensors))
    return StackingFusion(head, parts.kinds, parts.temperatures, is_multi_label=parts.is_multi_label)


def build_concatenation(parts: Parts) -> Fusion:
    """Build a concatenation, with its projection if there is one."""
    sizes = parts.sizes("features")
    projection = read_projection(parts.folder, parts.spec.fusion.projection, sum(sizes.values()))
    return ConcatenationFusion(tuple(sizes), projection)


def build_mean_tensor(parts: Parts) -> Fusion:
    """Build the mean of tensors."""
    names = list(parts.spec.members)
    shapes = {names[index]: list(parts.shapes[index]) for index in parts.kinds}
    if any(shape != next(iter(shapes.values())) or math.prod(shape) == 0 for shape in shapes.values()):
        raise InvalidEnsemble(f"members: found outputs of shapes {shapes}; allowed: the same shape for all, not empty")
    return TensorFusion(tuple(parts.kinds))


def build_similarity(parts: Parts) -> Fusion:
    """Build a comparison of the query with the other member, or with texts that have been embedded."""
    fusion, texts = parts.spec.fusion, parts.cached_texts
    features = parts.same_size("features", 1)
    query = list(parts.spec.members).index(fusion.query) if fusion.query else next(iter(parts.kinds))
    other = next(index for index in parts.kinds if index != query)
    if (texts is None) != (fusion.texts is None):
        raise InvalidEnsemble(f"fusion.texts: found {fusion.texts!r} {'without' if texts is None else 'with'} embeddings of texts")
    if texts is not None and (texts.shape[1:] != (features,) or not texts.isfinite().all()):
        raise InvalidEnsemble(f"fusion.texts: embedded as {list(texts.shape)}; allowed: finite numbers, [texts, {features}]")
    return SimilarityFusion(
        query, other, scale=100.0 if fusion.scale is None else fusion.scale, bias=fusion.bias or 0.0,
        activation=fusion.activation or "softmax", texts=texts,
    )  # fmt: skip


def build_detection(pool: BoxPool, parts: Parts) -> Fusion:
    """Build a fusion of several detectors' boxes."""
    fusion = parts.spec.fusion
    parts.check_boxes()
    return DetectionFusion(
        pool, tuple(parts.kinds), iou=IOU if fusion.iou is None else fusion.iou, min_score=fusion.min_score or 0.0,
        max_boxes=fusion.max_boxes or MAX_BOXES,
    )  # fmt: skip


def build_crops(parts: Parts) -> Fusion:
    """Build a fusion of a detector with the classifier of its crops."""
    fusion, names = parts.spec.fusion, list(parts.spec.members)
    parts.check_boxes()
    detector, classifier = sorted(parts.kinds, key=lambda index: parts.kinds[index] != "detections")
    crops = find_crops(parts.spec, names[classifier], names[detector])
    classes = parts.shapes[classifier]
    if len(classes) != 1 or classes[0] < 2:
        raise InvalidEnsemble(
            f"members.{names[classifier]}.output: a sample's output has shape {list(classes)}; allowed: [classes], at least 2"
        )
    return CropsFusion(
        parts.kinds, parts.temperatures,
        min_crop_score=crops.min_score if crops else 0.0, min_score=fusion.min_score or 0.0,
        max_boxes=fusion.max_boxes or MAX_BOXES,
    )  # fmt: skip


def _count_answers(parts: Parts) -> int:
    return parts.same_size("labels", 1) if parts.is_multi_label else parts.same_size("classes", 2)

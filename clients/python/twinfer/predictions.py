"""What a prediction of any task says, as plain frozen values."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self, TypeVar

from twinfer.v1 import ensemble_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """A class and its probability, 0 to 1; `label` is empty where the ensemble has none."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ScoredMatch:
    """How alike the query is to one of the samples it was compared with; `label` is empty for a sample of the request."""

    index: int
    label: str
    cosine: float
    probability: float


@dataclass(frozen=True, slots=True)
class DetectedBox:
    """A box around an object; coordinates are parts of the image's width and height, 0 to 1, from its upper left corner."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    score: float
    index: int
    label: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """A float32 tensor: little-endian bytes, row-major, as `numpy.frombuffer(data, "<f4").reshape(shape)` reads them."""

    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction, fused or a member's own; what belongs to another task is empty.

    Classification: `classes`, most probable first. Multi-label: `labels`, likewise. Similarity: `matches`. Detection: `boxes`,
    highest score first.
    """

    classes: tuple[ScoredClass, ...] = ()
    embedding: tuple[float, ...] = ()
    labels: tuple[ScoredClass, ...] = ()
    matches: tuple[ScoredMatch, ...] = ()
    boxes: tuple[DetectedBox, ...] = ()
    tensor: Tensor | None = None

    @classmethod
    def from_message(cls, message: pb.Prediction) -> Self:
        """Return the prediction that a message holds."""
        match message.WhichOneof("task"):
            case "classification":
                return cls(classes=_copy(ScoredClass, message.classification.classes))
            case "multi_label":
                return cls(labels=_copy(ScoredClass, message.multi_label.labels))
            case "similarity":
                return cls(matches=_copy(ScoredMatch, message.similarity.matches))
            case "detections":
                return cls(boxes=_copy(DetectedBox, message.detections.boxes))
            case "tensor":
                return cls(tensor=Tensor(tuple(message.tensor.shape), message.tensor.data))
        return cls(embedding=tuple(message.embedding.values))

    @property
    def best(self) -> ScoredClass:
        """The most probable class. Raises LookupError if the prediction is not a classification."""
        if not self.classes:
            raise LookupError("the prediction has no classes; what it has stands in the field of the ensemble's task.")
        return self.classes[0]

    @property
    def label(self) -> str:
        """The most probable class's label."""
        return self.best.label

    @property
    def probability(self) -> float:
        """The most probable class's probability."""
        return self.best.probability


Value = TypeVar("Value", ScoredClass, ScoredMatch, DetectedBox)


def _copy(kind: type[Value], messages: Iterable[object]) -> tuple[Value, ...]:
    """Return each message as a `kind`, whose fields have the names of the message's."""
    names = [one.name for one in fields(kind)]
    return tuple(kind(*(getattr(message, name) for name in names)) for message in messages)

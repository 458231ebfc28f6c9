"""Predictions as messages: one function for each task, from the arrays that `rows.Answer` describes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twinfer.v1 import tensor_pb2
from twinfer.v1.ensemble_service_pb2 import (
    Classification,
    DetectedBox,
    Detections,
    Embedding,
    MultiLabel,
    Prediction,
    ScoredClass,
    ScoredMatch,
    Similarity,
)

DEFAULT_TOP_K = 5

Values = NDArray[np.float32]
Labels = Sequence[str]


def write_prediction(task: str, values: Values, labels: Labels, top_k: int) -> Prediction:
    """Turn a fused prediction, or a member's in the same form, into its message; `labels` are the ensemble's, or empty."""
    return _WRITERS[task](values, labels, top_k or DEFAULT_TOP_K)


def write_matches(values: Values) -> Prediction:
    """Turn likenesses to a request's own samples into their message, in the request's order; those to the ensemble's are ranked."""
    return Prediction(similarity=Similarity(matches=_matches(values, range(len(values)), ())))


def write_tensor(values: Values) -> Prediction:
    """Turn any array into a prediction that is a tensor."""
    data = values.astype("<f4", copy=False).tobytes()
    return Prediction(tensor=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FP32, shape=values.shape, data=data))


def _write_classes(values: Values, labels: Labels, top_k: int) -> Prediction:
    return Prediction(classification=Classification(classes=_scored(values, labels, top_k)))


def _write_labels(values: Values, labels: Labels, top_k: int) -> Prediction:
    return Prediction(multi_label=MultiLabel(labels=_scored(values, labels, top_k)))


def _scored(values: Values, labels: Labels, top_k: int) -> list[ScoredClass]:
    best = np.argsort(-values, kind="stable")[:top_k]
    return [
        ScoredClass(index=index, label=labels[index] if labels else "", probability=probability)
        for index, probability in zip(best.tolist(), values[best].tolist(), strict=True)
    ]


def _write_embedding(values: Values, labels: Labels, top_k: int) -> Prediction:
    return Prediction(embedding=Embedding(values=values.tolist()))


def _write_similarity(values: Values, labels: Labels, top_k: int) -> Prediction:
    best = np.argsort(-values[:, 0], kind="stable")[:top_k]
    return Prediction(similarity=Similarity(matches=_matches(values, best.tolist(), labels)))


def _matches(values: Values, places: Sequence[int], labels: Labels) -> list[ScoredMatch]:
    return [
        ScoredMatch(index=place, label=labels[place] if labels else "", cosine=values[place, 0], probability=values[place, 1])
        for place in places
    ]


def _write_boxes(values: Values, labels: Labels, top_k: int) -> Prediction:
    boxes = []
    for x_min, y_min, x_max, y_max, score, number in values[values[:, 4] > 0].tolist():
        index = int(number)
        label = labels[index] if 0 <= index < len(labels) else ""
        boxes.append(DetectedBox(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max, score=score, index=index, label=label))
    return Prediction(detections=Detections(boxes=boxes))


def _write_tensor(values: Values, labels: Labels, top_k: int) -> Prediction:
    return write_tensor(values)


_WRITERS: Mapping[str, Callable[[Values, Labels, int], Prediction]] = {
    "classification": _write_classes,
    "multi_label": _write_labels,
    "embedding": _write_embedding,
    "similarity": _write_similarity,
    "detection": _write_boxes,
    "tensor": _write_tensor,
}

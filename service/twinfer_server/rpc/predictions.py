"""Predictions into messages: one function for each task, from the arrays that `rows.Answer` describes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twinfer.v1 import tensor_pb2
from twinfer.v1.ensemble_service_pb2 import Prediction, ScoredClass

DEFAULT_TOP_K = 5

Values = NDArray[np.float32]
Labels = Sequence[str]


def write_prediction(message: Prediction, task: str, values: Values, labels: Labels, top_k: int) -> None:
    """Write a fused prediction, or a member's in the same form; `labels` are the ensemble's, or empty."""
    _WRITERS[task](message, values, labels, top_k or DEFAULT_TOP_K)


def write_matches(message: Prediction, values: Values) -> None:
    """Write likenesses to a request's own samples, in the request's order; those to the ensemble's are ranked."""
    _write_matches(message, values, range(len(values)), ())


def write_tensor(message: Prediction, values: Values) -> None:
    """Write any array as a prediction that is a tensor."""
    message.tensor.dtype = tensor_pb2.DATA_TYPE_FP32
    message.tensor.shape.extend(values.shape)
    message.tensor.data = values.astype("<f4", copy=False).tobytes()


def _write_classes(message: Prediction, values: Values, labels: Labels, top_k: int) -> None:
    message.classification.SetInParent()
    _write_scores(message.classification.classes.add, values, labels, top_k)


def _write_labels(message: Prediction, values: Values, labels: Labels, top_k: int) -> None:
    message.multi_label.SetInParent()
    _write_scores(message.multi_label.labels.add, values, labels, top_k)


def _write_scores(add: Callable[..., ScoredClass], values: Values, labels: Labels, top_k: int) -> None:
    best = (-values).argsort(kind="stable")[:top_k]
    for index, probability in zip(best.tolist(), values.take(best).tolist(), strict=True):
        add(index=index, label=labels[index] if labels else "", probability=probability)


def _write_embedding(message: Prediction, values: Values, labels: Labels, top_k: int) -> None:
    message.embedding.SetInParent()
    message.embedding.values.extend(values.tolist())


def _write_similarity(message: Prediction, values: Values, labels: Labels, top_k: int) -> None:
    _write_matches(message, values, np.argsort(-values[:, 0], kind="stable")[:top_k].tolist(), labels)


def _write_matches(message: Prediction, values: Values, places: Sequence[int], labels: Labels) -> None:
    message.similarity.SetInParent()
    for place in places:
        cosine, probability = values[place].tolist()
        message.similarity.matches.add(index=place, label=labels[place] if labels else "", cosine=cosine, probability=probability)


def _write_boxes(message: Prediction, values: Values, labels: Labels, top_k: int) -> None:
    message.detections.SetInParent()
    for x_min, y_min, x_max, y_max, score, number in values[values[:, 4] > 0].tolist():
        index = int(number)
        label = labels[index] if 0 <= index < len(labels) else ""
        message.detections.boxes.add(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max, score=score, index=index, label=label)


def _write_tensor(message: Prediction, values: Values, labels: Labels, top_k: int) -> None:
    write_tensor(message, values)


_WRITERS: Mapping[str, Callable[[Prediction, Values, Labels, int], None]] = {
    "classification": _write_classes,
    "multi_label": _write_labels,
    "embedding": _write_embedding,
    "similarity": _write_similarity,
    "detection": _write_boxes,
    "tensor": _write_tensor,
}

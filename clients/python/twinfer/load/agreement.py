"""Whether answers to the same request say the same, whatever shared their flights."""

import math
from collections.abc import Iterable

from twinfer.v1 import ensemble_service_pb2

RANKED = ("probability", "cosine")
Numbers = dict[tuple[int, str], float]


class Agreement:
    """Keeps the first answer to each request, and compares every later one with it.

    Numbers may differ by `tolerance`, times the largest number of the first answer where that is above 1, for neighbours in a batch
    change the last bits. Another version of the ensemble or of its fusion has first answers of its own, and degraded answers are
    no part of this: they differ for a reason.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._first: dict[tuple[int, int, int], bytes] = {}

    def holds(self, request: int, answer: ensemble_service_pb2.InferResponse) -> bool:
        """Whether an answer to the request of this number equals the first one; the first one does."""
        found = answer.prediction.SerializeToString(deterministic=True)
        first = self._first.setdefault((request, answer.version, answer.fusion_version), found)
        return first == found or self._is_close(ensemble_service_pb2.Prediction.FromString(first), answer.prediction)

    def _is_close(self, first: ensemble_service_pb2.Prediction, found: ensemble_service_pb2.Prediction) -> bool:
        ours, theirs = numbers(first), numbers(found)
        if len(ours) != len(theirs) or first.WhichOneof("task") != found.WhichOneof("task"):
            return False
        allowed = self._tolerance * max([1.0, *map(abs, ours.values())])
        return all(abs(_look_up(ours, key) - _look_up(theirs, key)) <= allowed for key in ours.keys() | theirs.keys())


def numbers(prediction: ensemble_service_pb2.Prediction) -> Numbers:
    """Give a prediction's numbers, each with what it is of: a class's index or a place, and the name of the number."""
    task = prediction.WhichOneof("task")
    if task == "classification":
        return {(one.index, "probability"): one.probability for one in prediction.classification.classes}
    if task == "multi_label":
        return {(one.index, "probability"): one.probability for one in prediction.multi_label.labels}
    if task == "similarity":
        matches = prediction.similarity.matches
        return {(one.index, name): getattr(one, name) for one in matches for name in ("cosine", "probability")}
    if task == "detections":
        names = ("score", "x_min", "y_min", "x_max", "y_max")
        boxes = enumerate(prediction.detections.boxes)
        return {(place, f"{name} of class {box.index}"): getattr(box, name) for place, box in boxes for name in names}
    values: Iterable[float] = memoryview(prediction.tensor.data).cast("f") if task == "tensor" else prediction.embedding.values
    return {(place, "value"): value for place, value in enumerate(values)}


def _look_up(found: Numbers, key: tuple[int, str]) -> float:
    """Of the best few classes, the last may change places with the first that is not listed, which is no better than it."""
    if key in found or key[1] not in RANKED:
        return found.get(key, math.nan)
    listed = [value for (_, name), value in found.items() if name == key[1]]
    return min(listed) if len(listed) > 1 else math.nan

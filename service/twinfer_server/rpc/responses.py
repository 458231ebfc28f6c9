"""Responses: what the engine returns, written into the contract's messages.

Everything is written into the message where it belongs: one that is made apart is copied into the one around it, and with that
one again into the next.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twinfer.v1 import tensor_pb2
from twinfer.v1.ensemble_service_pb2 import InferResponse, MemberResult, Prediction, ScoredClass, Timings

from .. import types
from ..executor import Ensemble
from ..types import InferRequest
from .codec import write_duration, write_error
from .describe import find_compared_input

DEFAULT_TOP_K = 5

Values = NDArray[np.float32]
Labels = Sequence[str]


class ResponseWriter:
    """Writes the responses of one ensemble. What the requests of one batch have in common is written once, and copied from there.

    Event loop only.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        """Take names and labels from the ensemble; a new fusion changes none of them."""
        self._name, self._version, self._labels = ensemble.spec.name, ensemble.spec.version, ensemble.labels
        self._task = ensemble.spec.task
        self._members = [(member.name, member.spec.output.kind) for member in ensemble.members]
        self._compared = find_compared_input(ensemble)
        self._common: tuple[tuple[types.MemberResult, ...], InferResponse] | None = None
        """The members' results that the last response had, and what was written of them."""

    def write(self, message: InferResponse, response: types.Response, request: InferRequest) -> None:
        """Write a response into an empty message; the request's total time ends here."""
        # The same object only where requests of one batch ask for no more than what is the same for all of them.
        if self._common is None or self._common[0] is not response.members:
            self._common = response.members, self._write_common(response, request)
            # A batch's responses are written in one turn of the loop; afterwards nothing keeps its arrays.
            asyncio.get_running_loop().call_soon(self._forget)
        message.CopyFrom(self._common[1])
        message.request_id = request.request_id
        self._write(message.prediction, response.prediction, request)
        if response.disagreement is not None:
            message.disagreement = response.disagreement
        own, timings = message.timings, response.timings
        write_duration(own.decode, timings.decode_seconds)
        write_duration(own.queue, timings.queue_seconds)
        write_duration(own.buffer_wait, timings.buffer_wait_seconds)
        write_duration(own.total, time.monotonic() - request.arrived_at)

    def _forget(self) -> None:
        self._common = None

    def _write_common(self, response: types.Response, request: InferRequest) -> InferResponse:
        timings = response.timings
        message = InferResponse(
            ensemble=self._name,
            version=self._version,
            degraded=response.is_degraded,
            fusion_version=response.fusion_version,
            timings=Timings(batch_size=timings.batch_size, execution=timings.execution, overlap_ratio=timings.overlap_ratio),
        )
        write_duration(message.timings.device, timings.device_seconds)
        for result, (name, output) in zip(response.members, self._members, strict=True):
            self._write_member(message.members.add(name=name), result, output, request)
        return message

    def _write_member(self, message: MemberResult, result: types.MemberResult, output: str, request: InferRequest) -> None:
        message.state = int(result.state)  # type: ignore[assignment]  # the numbers are the contract's own
        message.weight = result.weight
        message.cuda_graph = result.used_cuda_graph
        if result.device_seconds is not None:
            write_duration(message.device_time, result.device_seconds)
        if result.solo_seconds is not None:
            write_duration(message.solo_latency, result.solo_seconds)
        if result.prediction is not None:
            # A member's own prediction that has not the form of the task is a tensor.
            if self._task == "similarity" or (self._task == "detection" and output != "detections"):
                write_tensor(message.prediction, result.prediction)
            else:
                self._write(message.prediction, result.prediction, request)
        if result.error is not None:
            message.error.CopyFrom(write_error(result.error))
        if result.attribution is not None:
            message.attribution.delta = result.attribution.delta
            self._write(message.attribution.without, result.attribution.without, request)

    def _write(self, message: Prediction, values: Values, request: InferRequest) -> None:
        if self._task == "similarity" and self._compared in request.inputs:
            write_matches(message, values)
        else:
            write_prediction(message, self._task, values, self._labels, request.top_k)


# --- predictions, one function for each task, from the arrays that `types.Response` describes ---------------------------------


def write_prediction(message: Prediction, task: str, values: Values, labels: Labels, top_k: int) -> None:
    """Write a fused prediction, or a member's in the same form; `labels` are the ensemble's, or empty."""
    _WRITERS[task](message, values, labels, top_k or DEFAULT_TOP_K)


def write_matches(message: Prediction, values: Values) -> None:
    """Write similarities to a request's own samples, in the request's order; those to the ensemble's are ranked."""
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


def _write_matches(message: Prediction, values: Values, indices: Sequence[int], labels: Labels) -> None:
    message.similarity.SetInParent()
    for index in indices:
        cosine, probability = values[index].tolist()
        message.similarity.matches.add(index=index, label=labels[index] if labels else "", cosine=cosine, probability=probability)


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

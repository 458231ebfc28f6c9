"""Outputs: from whatever a model returns to the one tensor that counts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InvalidEnsemble
from ..spec import ImageInputSpec, MemberSpec, OutputSpec


def select_output(key: str, outputs: object, select: int | str) -> Tensor:
    """Pick an output: by position in a tuple, by name in a mapping or as an attribute; raises InvalidEnsemble.

    `key` is the path of `select` in the ensemble's file; the error begins with it.
    """
    found: object = outputs
    if isinstance(select, str):
        found = outputs.get(select) if isinstance(outputs, Mapping) else getattr(outputs, select, None)
    elif isinstance(outputs, tuple | list):
        found = outputs[select] if -len(outputs) <= select < len(outputs) else None
    elif isinstance(outputs, Mapping):
        found = list(outputs.values())[select] if select < len(outputs) else None
    if not isinstance(found, Tensor):
        raise InvalidEnsemble(f"{key}: {select!r} finds no tensor; found outputs {_outline(outputs)}")
    return found


def read_output(name: str, spec: MemberSpec, outputs: object) -> Tensor:
    """Give what counts of what the member `name` has returned, float32 [samples, ...]; detections are packed."""
    key, output = f"members.{name}.output", spec.output
    selected = select_output(f"{key}.select", outputs, output.select)
    if output.kind != "detections":
        return selected.float()
    scores = select_output(f"{key}.scores", outputs, output.scores)
    labels = None if output.labels is None else select_output(f"{key}.labels", outputs, output.labels)
    images = [image.size for image in spec.input.values() if isinstance(image, ImageInputSpec)]
    try:
        return pack_detections(selected, scores, labels, output, images[0] if images else (1, 1))
    except ValueError as error:
        raise InvalidEnsemble(f"{key}: {error}") from None


def pack_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, spec: OutputSpec, size: tuple[int, int] | list[int]
) -> Tensor:  # fmt: skip
    """Pack a detector's outputs into one tensor as fusions take them; raises ValueError where shapes do not fit.

    boxes: [samples, boxes, 4], as `spec.box_format` and `spec.box_units` say; `size` is the height and width that pixels are of.
    scores: [samples, boxes, classes] as `spec.score_kind` says, of which each box's best class counts; or [samples, boxes].
    labels: the classes' indexes, [samples, boxes]; None with one score for a box means that there is one class, 0.
    Returns float32 [samples, boxes, 6]: x_min, y_min, x_max, y_max (0..1), score, class; highest score first. What is not finite
    stays so, as NaN.
    """
    has_classes = scores.ndim == 3
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2] or scores.ndim not in (2, 3):
        raise ValueError(f"found boxes {list(boxes.shape)} and scores {list(scores.shape)}; allowed: {_SHAPES}")
    if labels is not None and (has_classes or labels.shape != scores.shape):
        raise ValueError(f"found scores {list(scores.shape)} and labels {list(labels.shape)}; allowed: {_SHAPES}")
    if spec.score_kind == "softmax" and not (has_classes and scores.shape[2] > 1):
        raise ValueError(f"score_kind: 'softmax' of scores {list(scores.shape)}; allowed: [samples, boxes, classes + 1]")
    corners, scores = _find_corners(boxes.float(), spec, size), scores.float()
    if spec.score_kind == "sigmoid":
        scores = scores.sigmoid()
    elif spec.score_kind == "softmax":
        scores = scores.softmax(-1)[..., :-1]
    if has_classes:
        scores, classes = scores.max(-1)
    else:
        classes = torch.zeros_like(scores) if labels is None else labels
    packed = torch.cat([corners, scores.unsqueeze(-1), classes.float().unsqueeze(-1)], dim=-1)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return packed.gather(1, order.unsqueeze(-1).expand(-1, -1, 6))


_SHAPES = "boxes [samples, boxes, 4], with scores [samples, boxes, classes], or scores and labels [samples, boxes]"


def _find_corners(boxes: Tensor, spec: OutputSpec, size: tuple[int, int] | list[int]) -> Tensor:
    """Give the corners as parts of the image, within it."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if spec.box_format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif spec.box_format == "xywh":
        second = first + second
    if spec.box_units == "pixels":
        height, width = size
        first, second = (torch.stack([edge[..., 0] / width, edge[..., 1] / height], dim=-1) for edge in (first, second))
    corners = torch.cat([first, second], dim=-1)
    # Clamping would make a good number of an infinity.
    return corners.clamp(0.0, 1.0).masked_fill(~corners.isfinite(), torch.nan)


def _outline(outputs: object) -> str:
    if isinstance(outputs, Mapping):
        return str(sorted(str(key) for key in outputs))
    if isinstance(outputs, tuple | list):
        return f"{len(outputs)} of type {[type(output).__name__ for output in outputs]}"
    return type(outputs).__name__

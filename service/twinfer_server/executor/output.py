"""Outputs: from whatever a model returns to the one tensor that counts."""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InvalidEnsemble
from ..fusion import pack_detections
from ..spec import ImageInputSpec, MemberSpec


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


def _outline(outputs: object) -> str:
    if isinstance(outputs, Mapping):
        return str(sorted(str(key) for key in outputs))
    if isinstance(outputs, tuple | list):
        return f"{len(outputs)} of type {[type(output).__name__ for output in outputs]}"
    return type(outputs).__name__

"""What a member is: where its model comes from, what it takes and what it gives."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, ValidationInfo, model_validator

from .directory import PREFIX, complete_member
from .files import Name, Strict
from .inputs import ImageInputSpec, InputSpec


class OutputSpec(Strict):
    """Which of a member's outputs counts, and what it means."""

    kind: Literal["logits", "probabilities", "embedding", "detections", "tensor", "features"] = "logits"
    """`features` feed other members and no fusion."""
    select: int | str = 0
    """The output's position in a tuple, or its name in a mapping. Of detections: the boxes, [samples, boxes, 4]."""
    scores: int | str = 1
    """Of detections: where the scores are, [samples, boxes], or [samples, boxes, classes]."""
    labels: int | str | None = None
    """Of detections: where the classes' indexes are, [samples, boxes]; None where `scores` has a dimension for them."""
    score_kind: Literal["probabilities", "sigmoid", "softmax"] = "probabilities"
    """Of detections: what turns `scores` into probabilities; the last class of a softmax is "nothing"."""
    box_format: Literal["xyxy", "cxcywh", "xywh"] = "xyxy"
    box_units: Literal["relative", "pixels"] = "relative"
    """Of detections: parts of the image's width and height, or pixels of what the member takes."""


class MemberSpec(Strict):
    """One model: where it comes from, what it takes and what it gives."""

    model: Annotated[str, Field(min_length=1)]
    """A file of the folder, `python:module:attribute`, or `hf:DIR`; the suffix or prefix picks the loader."""
    architecture: str | None = None
    """Of a `.safetensors` file, which holds weights only: `python:file.py:attribute` or `timm:NAME`."""
    pooling: Literal["cls", "mean", "max", "last", "pooler"] | None = None
    """Of an `hf:` directory without a head: how features become one vector. Default: what the directory says."""
    provider: Literal["cpu"] = "cpu"
    """Of an `.onnx` file: where ONNX Runtime computes. Its CUDA provider is not supported yet."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8_weight_only", "int8_dynamic", "fp8"] = "fp32"
    """The numbers that it computes in."""
    acceleration: Literal["eager", "compile", "tensorrt"] = "eager"
    """What makes it fast: nothing, Inductor (which needs a C++ compiler where the server runs), or torch-tensorrt."""
    tolerance: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """The largest error against fp32 eager, as a part of the largest absolute output, with which it is loaded. None: any."""
    device: Annotated[str, Field(pattern=r"^cuda:\d+$")] | None = None
    """Another GPU than the one that the ensemble is on, where the fusion is. Default: the ensemble's."""
    capture: bool = True
    """Whether the member may be captured as a CUDA graph."""
    priority: Literal["normal", "high"] = "normal"
    """A high one's CUDA stream goes before the others' where they compete for the GPU; a CPU knows no such thing."""
    input: Annotated[dict[Name, InputSpec], Field(min_length=1)]
    """By input name; the model is called with the inputs in this order."""
    output: OutputSpec = OutputSpec()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, member: Any, info: ValidationInfo) -> Any:
        if isinstance(member, dict) and str(member.get("model")).startswith(PREFIX):
            return complete_member(member, (info.context or {})["folder"])
        return member

    @model_validator(mode="after")
    def _check_boxes(self) -> Self:
        for name, spec in self.input.items():
            if self.output.kind == "detections" and isinstance(spec, ImageInputSpec) and spec.fit != "stretch":
                # Boxes are parts of what the member sees, and nothing turns them back into parts of the picture yet.
                raise ValueError(f"input.{name}.fit is {spec.fit!r} for output.kind 'detections'; allowed: 'stretch'")
        return self

    @property
    def is_tuned(self) -> bool:
        """Whether the model is to compute otherwise than as it was loaded."""
        return (self.precision, self.acceleration) != ("fp32", "eager")

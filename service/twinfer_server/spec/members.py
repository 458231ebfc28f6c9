"""What a member is: where its model comes from, what it takes and what it gives."""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, FiniteFloat, ValidationInfo, model_validator

from ..errors import quote
from .directory import PREFIX, complete_member, find_directory
from .files import Fault, Name, Strict, find_file

Pixels = Annotated[int, Field(ge=1, le=8192)]
Sides = Annotated[list[Pixels], Field(min_length=2, max_length=2)]
"""Height and width."""


class ImageInputSpec(Strict):
    """An image: decoded to uint8 [height, width, channels], resized; on the device scaled to 0..1 and normalised.

    torchvision's `Resize(256)` and `CenterCrop(224)` are `size = [224, 224]`, `fit = "crop"`, `resize_to = 256`; the letterbox of
    the YOLO detectors is `fit = "pad"`, `pad_color = 114`. `hf:` members have their image processor's values.
    """

    kind: Literal["image"]
    size: Sides
    """In pixels, that the member takes."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """Which channels the member takes, in which order; `mean` and `std` are in the same order."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How a picture of another shape fits: stretched, its middle cut out, or scaled to fit into `size` with bars beside it."""
    resize: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """How pixels are interpolated; all but "nearest" look at every source pixel (antialias)."""
    resize_to: Pixels | Sides | None = None
    """What is resized to before the middle is cut out: the shorter edge, or height and width; None: the longer side of `size`."""
    crop_offset: Literal["round", "floor"] = "round"
    """Where the middle lies if that is between two pixels: at the even one (torchvision), or the first, and of bars
    around a picture that is too small the last (Hugging Face)."""
    scaled_decoding: bool = True
    """Whether a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, where that is still about twice what it is resized to:
    faster, and of photographs on average within 1/255 of decoding in full. Never done for "nearest" and "box"."""
    pad_color: Annotated[int, Field(ge=0, le=255)] = 0
    """The bars' grey, 0 black to 255 white."""
    pad_place: Literal["middle", "corner"] = "middle"
    """Where the picture lies between the bars: in the middle, or in the upper left corner."""
    mean: list[FiniteFloat] = []
    """Subtracted per channel after scaling to 0..1; empty means 0."""
    std: list[Annotated[FiniteFloat, Field(gt=0)]] = []
    """Divided by, per channel; empty means 1."""
    required: bool = False

    @property
    def channels(self) -> int:
        """3 or 1."""
        return 1 if self.color == "gray" else 3

    @property
    def crop_from(self) -> int | list[int]:
        """What is resized to before the middle is cut out: the shorter edge, or height and width."""
        return max(self.size) if self.resize_to is None else self.resize_to

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                raise Fault(key, f"{len(values)} values", f"none, or {self.channels} for color {self.color!r}")
        for key, fit in (("resize_to", "crop"), ("crop_offset", "crop"), ("pad_color", "pad"), ("pad_place", "pad")):
            if key in self.model_fields_set and self.fit != fit:
                raise Fault(key, f"it beside fit {self.fit!r}", f"with fit {fit!r}")
        return self


def _check_tokenizer(value: str, info: ValidationInfo) -> str:
    find = find_directory if value.startswith(PREFIX) else find_file
    find((info.context or {})["folder"], value)
    return value


class TextInputSpec(Strict):
    """A text: token ids int64 [tokens], cut at `max_tokens` and padded to the batch's token bucket."""

    kind: Literal["text"]
    tokenizer: Annotated[str, AfterValidator(_check_tokenizer)]
    """A tokenizer.json as it stands, or `hf:DIR`: what transformers makes of all the files of that directory."""
    max_tokens: Annotated[int, Field(ge=1, le=32768)]
    truncation_side: Literal["right", "left"] = "right"
    """Where a text that is too long is cut: its end, or its beginning."""
    mask: bool = False
    """Whether the member takes (ids, mask), mask int64: 1 token, 0 padding. Without it, it always sees `max_tokens`."""
    pad_id: Annotated[int, Field(ge=0)] = 0
    pair: bool = False
    """Whether a sample is made of two texts, cut together at `max_tokens`; a request brings exactly these two."""
    token_types: bool = False
    """Whether the member takes (ids, mask, types), types int64: which text of a pair a token belongs to. It needs `mask`."""
    prompt: str = ""
    """What is put before every text; of a pair before the first."""
    max_samples: Annotated[int, Field(ge=1, le=4096)] = 1
    """The most texts that one request may bring; above 1 the member computes on each of them. Pairs come one at a time."""
    required: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pair and self.max_samples > 1:
            raise Fault("max_samples", f"{self.max_samples} for pairs", "1")
        if self.token_types and not self.mask:
            raise Fault("token_types", "true beside mask = false", "with mask = true")
        return self


MOST_SAMPLE_BYTES = 2**31 - 1
"""Of a tensor: no message carries more."""


def _describe_numbers(dtype: str, bound: float) -> str:
    """Return which numbers a tensor of the dtype holds if `bound` is none of them; "" if it is one."""
    if dtype == "bool":
        return "none"
    if dtype.startswith("float"):
        most = float(np.finfo(dtype).max)  # Python's own numbers compare exactly
        return "" if abs(bound) <= most else f"{-most} to {most}"
    whole = np.iinfo(dtype)
    return "" if bound.is_integer() and whole.min <= bound <= whole.max else f"a whole number, {whole.min} to {whole.max}"


class TensorInputSpec(Strict):
    """A ready tensor: one sample of this dtype and shape, or [samples, *shape]."""

    kind: Literal["tensor"]
    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=32)]
    max_samples: Annotated[int, Field(ge=1, le=4096)] = 1
    """The most samples that one request may bring; above 1 a tensor of one more dimension is taken for several."""
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    """The least and the greatest number that the member takes, such as an embedding's last index; None: any of the dtype."""
    required: bool = False

    @property
    def sample(self) -> str:
        """What one sample is: "float32 [2, 3]"."""
        return f"{self.dtype} {self.shape}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if size > MOST_SAMPLE_BYTES:
            raise Fault("shape", quote(self.shape)[1:-1], f"at most {MOST_SAMPLE_BYTES} bytes of {self.dtype}")
        for key, bound in (("min", self.min), ("max", self.max)):
            if bound is not None and (allowed := _describe_numbers(self.dtype, bound)):
                raise Fault(key, f"{bound:.15g} for dtype {self.dtype!r}", allowed)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise Fault("min", f"{self.min:.15g} beside max = {self.max:.15g}", "a min that is not above max")
        return self


class UpstreamInputSpec(Strict):
    """The output of another member, the upstream one, float32, handed on where it lies: one sample for each of that member's."""

    kind: Literal["output"]
    member: Name
    """A member that stands earlier in the file."""
    select: int | str = 0
    """Which of its outputs: the position in a tuple, or the name in a mapping."""


RequestInputSpec = ImageInputSpec | TextInputSpec | TensorInputSpec
InputSpec = Annotated[RequestInputSpec | UpstreamInputSpec, Discriminator("kind")]


class OutputSpec(Strict):
    """Which of a member's outputs counts, and what it means."""

    kind: Literal["logits", "probabilities", "embedding", "detections", "tensor", "features"] = "logits"
    """`features` are not fused: other members take them."""
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
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8_weight_only", "int8_dynamic", "fp8"] = "fp32"
    """The numbers that it computes in."""
    acceleration: Literal["eager", "compile", "tensorrt"] = "eager"
    """What makes it fast: nothing, Inductor (which needs a C++ compiler where the server runs), or torch-tensorrt."""
    tolerance: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """The largest error against fp32 eager, as a part of the largest absolute output, with which it is served. None: any."""
    device: Annotated[str, Field(pattern=r"^cuda:\d+$")] | None = None
    """Another GPU than the one that the ensemble is on, where the fusion is. Default: the ensemble's."""
    cuda_graph: bool = True
    """Whether the member may run as a CUDA graph."""
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
                raise Fault(f"input.{name}.fit", f"{spec.fit!r} for output.kind 'detections'", "'stretch'")
        return self

    @property
    def is_tuned(self) -> bool:
        """Whether the model is to compute otherwise than as it was loaded."""
        return (self.precision, self.acceleration) != ("fp32", "eager")

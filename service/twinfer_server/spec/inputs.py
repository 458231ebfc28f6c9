"""What a member takes: inputs that requests bring, and inputs that other members feed it."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Discriminator, Field, FiniteFloat, model_validator

from .files import FolderFile, Name, Strict

Pixels = Annotated[int, Field(ge=1, le=8192)]


class ImageInputSpec(Strict):
    """An image: decoded to uint8 [height, width, channels], resized; on the device scaled to 0..1 and normalised.

    How the keys say what the usual training pipelines do:

    - torchvision's `Resize(256)` and `CenterCrop(224)`: `size = [224, 224]`, `fit = "crop"`, `resize_to = 256`.
    - torchvision's `Resize((224, 224))`: `size = [224, 224]` alone.
    - Hugging Face's `do_resize` to {height, width}: `size` alone. With `do_center_crop`: `size` is the `crop_size`, `fit = "crop"`,
      `resize_to` the {shortest_edge}, or [height, width]. Its crops round another way than torchvision's: `crop_offset = "floor"`.
    - `resample`: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming.
    - Another `rescale_factor` than 1/255: `mean` and `std` are those of the pipeline, each divided by 255 times that factor.
    - The letterbox of the YOLO detectors: `fit = "pad"`, `pad_color = 114`.
    """

    kind: Literal["image"]
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    """Height and width, in pixels, that the member takes."""
    color: Literal["rgb", "gray"] = "rgb"
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How a picture of another shape fits: stretched, its middle cut out, or scaled to fit into `size` with bars beside it."""
    resize: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """How pixels are interpolated; all but "nearest" look at every source pixel (antialias)."""
    resize_to: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = None
    """What is resized to before the middle is cut out: the shorter edge, or height and width; None: the longer side of `size`."""
    crop_offset: Literal["round", "floor"] = "round"
    """Where the middle lies if that is between two pixels: at the even one (torchvision), or the first (Hugging Face)."""
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
        return 3 if self.color == "rgb" else 1

    @property
    def crop_from(self) -> int | list[int]:
        """What is resized to before the middle is cut out: the shorter edge, or height and width."""
        return max(self.size) if self.resize_to is None else self.resize_to

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                allowed = f"none, or {self.channels} for color {self.color!r}"
                raise ValueError(f"{key} has {len(values)} values; allowed: {allowed}")
        return self

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        for key, fit in (("resize_to", "crop"), ("crop_offset", "crop"), ("pad_color", "pad"), ("pad_place", "pad")):
            if key in self.model_fields_set and self.fit != fit:
                raise ValueError(f"{key} is set for fit {self.fit!r}; allowed: with fit {fit!r}")
        return self


class TextInputSpec(Strict):
    """A text: token ids int64 [tokens], cut at `max_tokens` and padded to the flight's token bucket."""

    kind: Literal["text"]
    tokenizer: FolderFile
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
    max_samples: Annotated[int, Field(ge=1, le=4096)] = 1
    """The most texts that one request may bring; above 1 the member computes on each of them. Pairs come one at a time."""
    required: bool = False

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if self.pair and self.max_samples > 1:
            raise ValueError(f"max_samples is {self.max_samples} for pairs; allowed: 1")
        if self.token_types and not self.mask:
            raise ValueError("token_types is true and mask is false; allowed: token_types with mask = true")
        return self


class TensorInputSpec(Strict):
    """A ready tensor: one sample of this dtype and shape, or [samples, *shape]."""

    kind: Literal["tensor"]
    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    shape: list[Annotated[int, Field(ge=1)]]
    max_samples: Annotated[int, Field(ge=1, le=4096)] = 1
    """The most samples that one request may bring; above 1 a tensor of one more dimension is taken for several."""
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    """The least and the greatest number that the member bears, such as the last place of an embedding; None: any of the dtype."""
    required: bool = False

    @property
    def sample(self) -> str:
        """What one sample is: "float32 [2, 3]"."""
        return f"{self.dtype} {self.shape}"

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        for key, bound in (("min", self.min), ("max", self.max)):
            if bound is None:
                continue
            if self.dtype == "bool":
                raise ValueError(f"{key} is set for dtype 'bool'; allowed: none")
            is_whole = not self.dtype.startswith("float")
            numbers = np.iinfo(self.dtype) if is_whole else np.finfo(self.dtype)
            # Python's own numbers, which compare exactly.
            least, most = (int(numbers.min), int(numbers.max)) if is_whole else (float(numbers.min), float(numbers.max))
            if not least <= bound <= most or (is_whole and not bound.is_integer()):
                allowed = f"{'a whole number, ' if is_whole else ''}{least} to {most}"
                raise ValueError(f"{key} is {bound:.15g} for dtype {self.dtype!r}; allowed: {allowed}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:.15g} and max is {self.max:.15g}; allowed: a min that is not above max")
        return self


class OutputInputSpec(Strict):
    """Another member's output, float32, handed on where it lies: one sample for each of that member's."""

    kind: Literal["output"]
    member: Name
    """A member that stands earlier in the file."""
    select: int | str = 0
    """Which of its outputs: the position in a tuple, or the name in a mapping."""


class CropsInputSpec(Strict):
    """What another member has found: crops around its boxes, float32 [channels, height, width], 0..1, cut on the device.

    The member computes on `max_crops` samples for every row; crops that no box stands for are black, and masked in the fusion.
    """

    kind: Literal["crops"]
    member: Name
    """A member that stands earlier in the file, takes one image and gives detections; the crops are cut from that image."""
    size: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=2, max_length=2)]
    """Height and width, in pixels, that the member takes."""
    max_crops: Annotated[int, Field(ge=1, le=1024)]
    """How many boxes of a row are looked at, those with the highest scores."""
    min_score: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    mean: list[FiniteFloat] = []
    std: list[Annotated[FiniteFloat, Field(gt=0)]] = []


RequestInputSpec = ImageInputSpec | TextInputSpec | TensorInputSpec
FedInputSpec = OutputInputSpec | CropsInputSpec
InputSpec = Annotated[RequestInputSpec | FedInputSpec, Discriminator("kind")]

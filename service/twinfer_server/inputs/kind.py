"""What every kind of input can do, and what all of them share: limits, and how an input is refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import InvalidInput, quote
from ..types import RawInput, Samples
from .staging import Staging

Decoded = TypeVar("Decoded")

Size = tuple[int, int]
"""Height and width, in pixels."""

IN_FULL: Size = (2**31, 2**31)
"""More than any picture has: nothing of it may be left out."""


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The largest inputs that are looked at; an image of 50 million pixels decodes to 150 MB, in passing to more."""

    max_image_pixels: int = 50_000_000
    max_text_bytes: int = 65_536


class InputKind(Protocol[Decoded]):
    """One input of one member: from what a caller sent to what the member is called with.

    `name` is the input's name in requests; errors begin with it. `tensor_dtype`, `tensor_shape` (-1 where any size is
    accepted) and `max_tokens` (0 where there are none) are what callers are told about the ready tensors it takes. A row gives
    the member up to `max_samples` samples; where `is_pair`, one, made of two texts. Of a picture it needs to see `at_least` so
    many pixels, and is content with one that is decoded to no more; (0, 0) for kinds that are no pictures.
    """

    name: str
    staging: tuple[Staging, ...]
    tensor_dtype: str
    tensor_shape: tuple[int, ...]
    max_tokens: int
    max_samples: int
    is_pair: bool
    at_least: Size

    def decode(self, value: RawInput, at_least: Size = IN_FULL) -> Decoded:
        """Do the costly part, once per request even where several members take the input; raises InvalidInput.

        The result fits every member that takes the input with this kind: nothing in it depends on this member's spec, and a
        picture shows `at_least` what the most demanding of them needs.
        """
        ...

    def prepare(self, decoded: Decoded) -> Samples:
        """Make this member's samples: one array [samples, ...] per staging buffer; raises InvalidInput.

        The arrays may be read-only and share memory with what the caller sent: copy from them, never write to them.
        """
        ...

    def is_light(self, value: RawInput) -> bool:
        """Whether `decode` and `prepare` take less time than handing the value to another thread."""
        ...

    def example(self, seed: int, tokens: int) -> Samples:
        """Make one sample of seeded random content, `tokens` long where the kind has tokens, for probing and warm-up."""
        ...

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn staged samples, on the device, into what the member is called with.

        Tensor operations only, without waiting for the device, so that a CUDA graph can hold them.
        """
        ...

    def to(self, device: torch.device) -> None:
        """Move the constants that `arguments` needs; once, before the first flight."""
        ...


def refuse(name: str, found: str, allowed: str) -> InvalidInput:
    """Make the error for an input that cannot be used."""
    return InvalidInput(f"inputs[{name!r}]: found {found}; allowed: {allowed}")


def describe(value: RawInput) -> str:
    """Say what was sent, without repeating it whole."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return f"the text {quote(value)}"
    if isinstance(value, tuple):
        return f"{len(value)} texts"
    return f"a tensor {value.dtype} {list(value.shape)}"

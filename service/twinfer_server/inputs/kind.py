"""What every kind of input can do, the buffers that its samples travel in, and how an input is refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import InvalidInput, quote
from ..types import RawInput, Samples

Decoded = TypeVar("Decoded")

Size = tuple[int, int]
"""Height and width, in pixels."""
IN_FULL: Size = (2**31, 2**31)
"""More than any picture has: nothing of it may be left out."""


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The largest inputs that are decoded; an image of 50 million pixels takes 150 MB, and for a moment more."""

    max_image_pixels: int = 50_000_000
    max_text_bytes: int = 65_536


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """One staging buffer of a member, [samples, *shape].

    Where `is_ragged`, the first dimension of `shape` is a maximum: prepared samples are shorter, and the batch pads them to its
    token bucket with `fill`. Where `is_upstream`, another member's output is copied into it on the device, not from the host.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_ragged: bool = False
    fill: int = 0
    is_upstream: bool = False


class InputKind(Protocol[Decoded]):
    """One input of one member: from what a caller sent to what the member is called with.

    `name` is the input's name in requests. `tensor_dtype` and `tensor_shape` (-1: any size) describe the ready tensors that it
    takes. A request gives the member up to `max_samples` samples. `min_size` is how much of a picture the member needs to see, and
    may be decoded for it; (0, 0) for other kinds.
    """

    name: str
    buffers: tuple[BufferSpec, ...]
    tensor_dtype: str
    tensor_shape: tuple[int, ...]
    max_samples: int
    min_size: Size

    def decode(self, value: RawInput, min_size: Size = IN_FULL) -> Decoded:
        """Do the costly part, once for all members that take the input, whatever their specs; raises InvalidInput.

        A picture has at least `min_size`, which the most demanding of them needs.
        """
        ...

    def prepare(self, decoded: Decoded) -> Samples:
        """Make this member's samples: one array [samples, ...] per staging buffer; raises InvalidInput.

        The arrays may be read-only and share memory with what the caller sent: copy from them, never write to them.
        """
        ...

    def example(self, seed: int, tokens: int) -> Samples:
        """Make one sample of seeded random content, up to `tokens` long where the kind has tokens, for checks and warm-up."""
        ...

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn staged samples into the member's arguments, on the device and without waiting for it: CUDA graphs hold this."""
        ...


def refuse(name: str, found: str, allowed: str) -> InvalidInput:
    """Make the error for an input that cannot be used."""
    return InvalidInput(f"inputs[{name!r}]: found {found}; allowed: {allowed}")


def describe(value: RawInput) -> str:
    """Describe what was sent, without repeating it whole."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return f"the text {quote(value)}"
    return f"{len(value)} texts" if isinstance(value, tuple) else f"a tensor {value.dtype} {list(value.shape)}"

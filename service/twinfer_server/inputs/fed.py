"""Fed inputs: what a member takes from another member of the same flight, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..spec import UpstreamInputSpec
from ..types import Samples
from .staging import Staging


@dataclass(frozen=True, slots=True)
class Feed:
    """What a member has for those that it feeds, on the device, one entry for each of its samples.

    output: float32 [samples, ...], its output that counts; detections are [samples, boxes, 6], highest score first.
    taps: float32 [samples, ...], its further outputs that somebody asks for, by how they select it.
    pixels: uint8 [samples, height, width, channels], the image that it looks at; None if it takes none, or several.
    """

    output: Tensor
    taps: dict[int | str, Tensor]
    pixels: Tensor | None


class OutputInput:
    """Another member's output, as it is: one sample for each of that member's."""

    def __init__(self, name: str, spec: UpstreamInputSpec, feeder: int, shape: tuple[int, ...], max_samples: int = 1) -> None:
        """Take the output of the member with the index `feeder`: of a row up to `max_samples` samples, float32 of `shape`."""
        self.name = name
        self.feeder = feeder
        self.samples_per_sample = 1
        self.max_samples = max_samples
        self.staging = (Staging("values", torch.float32, shape, is_fed=True),)
        self.max_tokens = 0
        self._select = spec.select

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a sample of normal numbers."""
        return (np.random.default_rng(seed).standard_normal((1, *self.staging[0].shape)).astype(np.float32),)

    def take(self, feed: Feed) -> Tensor:
        """Give what is staged: float32 [samples, ...]. Tensor operations only, so that a CUDA graph can hold them."""
        return feed.taps[self._select]

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Hand the staged tensor on."""
        return (staged[0],)

    def to(self, device: torch.device) -> None:
        """Nothing to move."""


FedInput = OutputInput

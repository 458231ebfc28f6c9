"""Fed inputs: what a member takes from another member of the same flight, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..spec import CropsInputSpec, OutputInputSpec
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

    def __init__(self, name: str, spec: OutputInputSpec, feeder: int, shape: tuple[int, ...], max_samples: int = 1) -> None:
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


class CropsInput:
    """Crops around what another member has found: `max_crops` samples for each of its samples, those of its best boxes.

    A crop is sampled from the pixels between the box's edges, bilinearly and without antialiasing, as RoIAlign with one sample
    per bin does (He et al. 2017, "Mask R-CNN"), in float32 0..1, and normalised: (x - mean) / std. A crop that no box stands for,
    or one below `min_score`, is all 0.
    """

    def __init__(self, name: str, spec: CropsInputSpec, feeder: int, channels: int) -> None:
        """Crop the image of the member with the index `feeder`, which has so many channels."""
        self.name = name
        self.feeder = feeder
        self.samples_per_sample = spec.max_crops
        self.staging = (Staging("crops", torch.float32, (channels, *spec.size), is_fed=True),)
        self.max_tokens = 0
        self._size = spec.size
        self._min_score = spec.min_score
        self._mean = torch.tensor(spec.mean or [0.0]).view(-1, 1, 1)
        self._std = torch.tensor(spec.std or [1.0]).view(-1, 1, 1)

    def example(self, seed: int, tokens: int) -> Samples:
        """Make the crops of one sample, of noise."""
        shape = (self.samples_per_sample, *self.staging[0].shape)
        return (np.random.default_rng(seed).random(shape, dtype=np.float32),)

    def take(self, feed: Feed) -> Tensor:
        """Give what is staged: float32 [samples x max_crops, channels, height, width]."""
        assert feed.pixels is not None
        boxes = feed.output[:, : self.samples_per_sample]
        missing = self.samples_per_sample - boxes.shape[1]
        boxes = functional.pad(boxes, (0, 0, 0, missing)) if missing > 0 else boxes
        corners, scores = boxes.reshape(-1, 6)[:, :4].clamp(0.0, 1.0), boxes.reshape(-1, 6)[:, 4]
        pixels = feed.pixels.permute(0, 3, 1, 2).float().div(255).repeat_interleave(self.samples_per_sample, dim=0)
        crops = functional.grid_sample(pixels, self._grid(corners), padding_mode="border", align_corners=False)
        is_empty = (scores <= 0) | (scores < self._min_score)
        return ((crops - self._mean) / self._std).masked_fill(is_empty.view(-1, 1, 1, 1), 0.0)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Hand the staged crops on."""
        return (staged[0],)

    def to(self, device: torch.device) -> None:
        """Move mean and std."""
        self._mean, self._std = self._mean.to(device), self._std.to(device)

    def _grid(self, corners: Tensor) -> Tensor:
        """Say where each pixel of a crop lies in the image, -1 to 1: float32 [crops, height, width, 2] from corners [crops, 4]."""
        height, width = self._size
        low, high = corners[:, None, :2] * 2 - 1, corners[:, None, 2:] * 2 - 1
        across = (torch.arange(width, device=corners.device) + 0.5) / width
        down = (torch.arange(height, device=corners.device) + 0.5) / height
        xs = low[..., 0] + (high - low)[..., 0] * across
        ys = low[..., 1] + (high - low)[..., 1] * down
        return torch.stack(
            [xs[:, None, :].expand(-1, height, -1), ys[:, :, None].expand(-1, -1, width)], dim=-1
        )  # fmt: skip


FedInput = OutputInput | CropsInput

"""Staging: the form in which a member's samples travel to the device."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Staging:
    """One staging buffer of a member: what a sample is on its way to the device.

    `shape` is that of one sample; the buffer is [samples, *shape]. Where `is_ragged`, the first dimension of `shape` is
    a maximum: prepared samples are shorter, and the flight pads them to its token bucket with `fill`. Where it `is_fed`, another
    member's output is copied into it on the device, and what requests bring has no part in it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_ragged: bool = False
    fill: int = 0
    is_fed: bool = False

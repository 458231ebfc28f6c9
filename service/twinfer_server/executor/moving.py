"""Moving values between host and device without waiting for either."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Send host values to `device` without waiting for it."""
    if values.device == device:
        return values
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> Tensor:
    """Send device values to the host; they are real once the event recorded next is done."""
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)

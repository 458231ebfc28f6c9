"""Slots: the staging buffers that a flight takes from a lane and gives back when it has landed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device import Device
from ..inputs import BufferSpec
from ..types import Samples
from .bucket import Bucket

if TYPE_CHECKING:
    from .capture import MemberCapture

SLOTS_PER_LANE = 2


class Slot:
    """One member's staging: for each of its buffers a host side, written row by row, and a device side, read by the member.

    On a CPU the two sides are one tensor.
    """

    def __init__(self, number: int, device: Device, stagings: Sequence[BufferSpec], max_samples: int) -> None:
        """Make room for `max_samples` samples of every staging buffer."""
        self.number = number
        self.captures: dict[Bucket, MemberCapture] = {}
        self._stagings = tuple(stagings)
        pairs = [device.staging((max_samples, *staging.shape), staging.dtype) for staging in stagings]
        self._host = [host for host, _ in pairs]
        self._device = [twin for _, twin in pairs]
        self._host_arrays = [host.numpy() for host in self._host]
        self._is_shared = self._host[0] is self._device[0]
        self.host_outputs = torch.empty(0)

    def write(self, samples: Sequence[Samples], bucket: Bucket, places: Sequence[int] | None = None, is_fed: bool = False) -> None:
        """Write the flight's samples into the host side, ragged ones padded to the bucket's tokens.

        `places` says at which sample each row begins; by default they go one behind the other. If the flight `is_fed`, fed buffers
        are left to `receive`.
        """
        for staging, array, position in zip(self._stagings, self._host_arrays, range(len(self._stagings)), strict=True):
            if is_fed and staging.is_upstream:
                continue
            first = 0
            if staging.is_ragged:
                array[: bucket.samples, : bucket.tokens] = staging.fill
            for number, sample in enumerate(samples):
                values = sample[position]
                first = first if places is None else places[number]
                last = first + len(values)
                if staging.is_ragged:
                    array[first:last, : values.shape[1]] = values
                else:
                    array[first:last] = values
                first = last

    def copy_in(self, bucket: Bucket, is_fed: bool = False) -> None:
        """Send the host side to the device side; nothing to do where they are one, nor for the fed buffers of a fed flight.

        Samples travel in full length, whatever the bucket's tokens: torch copies through memory that is not pinned where rows are
        cut, which holds up the host and breaks off a capture.
        """
        for staging, host, twin in zip(self._stagings, self._host, self._device, strict=True):
            if host is not twin and not (is_fed and staging.is_upstream):
                twin[: bucket.samples].copy_(host[: bucket.samples], non_blocking=True)

    def receive(self, position: int, values: Tensor) -> None:
        """Copy what another member gave into the buffer at `position`, on the device."""
        self._device[position][: len(values)].copy_(values, non_blocking=True)

    def staged(self, bucket: Bucket) -> list[Tensor]:
        """Give the device side, cut to the bucket."""
        return [self._view(twin, staging, bucket) for staging, twin in zip(self._stagings, self._device, strict=True)]

    @property
    def device_bytes(self) -> int:
        """The device memory behind the buffers."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._device)

    def copy_out(self, output: Tensor) -> Tensor:
        """Send a member's output to the host; the values are real once the event recorded next is done."""
        if self._is_shared:
            return output
        return self.host_outputs[: len(output)].copy_(output, non_blocking=True)

    def make_host_outputs(self, device: Device, output_shape: tuple[int, ...]) -> None:
        """Make the host buffer that outputs travel to; needed where host and device do not share memory."""
        self.host_outputs = device.staging((self._host[0].shape[0], *output_shape), torch.float32)[0]

    @staticmethod
    def _view(buffer: Tensor, staging: BufferSpec, bucket: Bucket) -> Tensor:
        rows = buffer[: bucket.samples]
        return rows[:, : bucket.tokens] if staging.is_ragged else rows

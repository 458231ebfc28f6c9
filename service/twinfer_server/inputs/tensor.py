"""Ready tensors: checked against the spec and handed to the member as they are."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..spec import TensorInputSpec
from ..types import Array, RawInput, Samples
from .kind import IN_FULL, InputLimits, Size, describe, refuse
from .staging import Staging

LIGHT_BYTES = 65536


class TensorInput:
    """A tensor input of one member: one sample per row, of the spec's dtype and shape, or several on top of each other.

    NaN and infinities are refused: through a model they would come back as its failure, and nobody would know whose
    fault it was. A member that wants to be told what is missing takes a second tensor for it. So are numbers beyond the spec's
    range, at which a model may raise: it would do so for every row of the flight.
    """

    def __init__(self, key: str, name: str, spec: TensorInputSpec, folder: Path, limits: InputLimits) -> None:
        """Take the spec; nothing is read."""
        self.name = name
        self.tensor_dtype: str = spec.dtype
        self.tensor_shape: tuple[int, ...] = tuple(spec.shape)
        self.max_tokens = 0
        self.max_samples = spec.max_samples
        self.is_pair = False
        self.at_least: Size = (0, 0)
        self.staging: tuple[Staging, ...] = (Staging("values", getattr(torch, spec.dtype), self.tensor_shape),)
        self._dtype = np.dtype(spec.dtype)
        # As the dtype has them: 0.1 in float32 is a little more than 0.1.
        self._least = -math.inf if spec.min is None else float(self._dtype.type(spec.min))
        self._most = math.inf if spec.max is None else float(self._dtype.type(spec.max))
        self._has_range = (spec.min, spec.max) != (None, None)

    def decode(self, value: RawInput, at_least: Size = IN_FULL) -> Array:
        """Check that it is a tensor; its dtype and shape are each member's own matter. Raises InvalidInput."""
        if isinstance(value, (bytes, str, tuple)):
            raise refuse(self.name, describe(value), f"a tensor {self.tensor_dtype} {list(self.tensor_shape)}")
        return value

    def prepare(self, decoded: Array) -> Samples:
        """Check dtype, rank, shape and values, and give [samples, *shape]; raises InvalidInput."""
        if decoded.dtype != self._dtype:
            raise refuse(self.name, f"dtype {decoded.dtype}", self.tensor_dtype)
        rank = len(self.tensor_shape)
        has_several = self.max_samples > 1 and decoded.ndim == rank + 1
        if decoded.ndim != rank and not has_several:
            ranks = f"rank {rank} (shape {list(self.tensor_shape)})"
            several = f", or {rank + 1}: [samples, *shape]" if self.max_samples > 1 else ""
            raise refuse(self.name, f"rank {decoded.ndim} (shape {list(decoded.shape)})", ranks + several)
        samples = decoded if has_several else decoded[np.newaxis]
        if samples.shape[1:] != self.tensor_shape:
            allowed = [f"1 to {self.max_samples}", *map(str, self.tensor_shape)] if has_several else map(str, self.tensor_shape)
            raise refuse(self.name, f"shape {list(decoded.shape)}", f"[{', '.join(allowed)}]")
        if not 1 <= len(samples) <= self.max_samples:
            raise refuse(self.name, f"{len(samples)} samples", f"1 to {self.max_samples}")
        if self._dtype.kind == "f" and np.count_nonzero(np.isfinite(samples)) != samples.size:
            raise refuse(self.name, "NaN or an infinity", "finite numbers")
        if self._has_range:
            self._check_range(samples.min(), samples.max())
        return (samples,)

    def is_light(self, value: RawInput) -> bool:
        """Whether to decode at once: all but large tensors that are looked through, for NaN or for a range."""
        if not isinstance(value, np.ndarray):
            return False
        return value.nbytes <= LIGHT_BYTES or (value.dtype.kind != "f" and not self._has_range)

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a tensor of normal numbers, or of zeros and ones where the dtype has no others in common; within the range.

        The first two are of whole numbers at the range's ends, so that one which the member does not bear shows when it is probed.
        """
        random, size = np.random.default_rng(seed), (1, *self.tensor_shape)
        nearest = max(self._least, min(0.0, self._most))
        if self._dtype.kind == "f":
            return ((nearest + random.standard_normal(size)).clip(self._least, self._most).astype(self._dtype),)
        least = self._least if math.isfinite(self._least) else nearest
        most = self._most if math.isfinite(self._most) else nearest + 1
        ends = {0: most, 1: least} if self._has_range else {}
        values = random.integers(int(least), int(most), size, endpoint=True)
        return (np.full(size, ends.get(seed, values)).astype(self._dtype),)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Hand the staged tensor on: [n, *shape] of the spec's dtype."""
        return (staged[0],)

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def _check_range(self, least: np.generic, most: np.generic) -> None:
        is_below = least.item() < self._least
        if is_below or most.item() > self._most:
            ends = (("at least", self._least), ("at most", self._most))
            allowed = " and ".join(f"{name} {self._dtype.type(end)!s}" for name, end in ends if math.isfinite(end))
            raise refuse(self.name, f"the number {least if is_below else most!s}", allowed)

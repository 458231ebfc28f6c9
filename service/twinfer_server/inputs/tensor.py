"""Tensors: ready ones from requests, checked against the spec, and those that another member's model gives."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidEnsemble
from ..spec import TensorInputSpec
from ..types import Array, RawInput, Samples
from .kind import IN_FULL, BufferSpec, InputLimits, Size, describe, refuse


class TensorInput:
    """A tensor input of one member: a sample of the spec's dtype and shape, or several stacked.

    NaN and infinities are refused: behind a model they would look like its failure. A member that is to be told what is missing
    takes a second tensor for it. Refused too are numbers beyond the spec's range, at which a model may raise: it would do so for
    every request of the batch.
    """

    def __init__(self, key: str, name: str, spec: TensorInputSpec, folder: Path, limits: InputLimits, device: torch.device) -> None:
        """Take the spec; no file is read."""
        self.name = name
        self._key, self._spec = key, spec
        self.tensor_dtype: str = spec.dtype
        self.tensor_shape: tuple[int, ...] = tuple(spec.shape)
        self.max_samples = spec.max_samples
        self.min_size: Size = (0, 0)
        self.buffers: tuple[BufferSpec, ...] = (BufferSpec("values", getattr(torch, spec.dtype), self.tensor_shape),)
        self._dtype = np.dtype(spec.dtype)
        # As the dtype has them: 0.1 in float32 is a little more than 0.1.
        self._least = -math.inf if spec.min is None else float(self._dtype.type(spec.min))
        self._most = math.inf if spec.max is None else float(self._dtype.type(spec.max))
        ends = (("at least", spec.min, self._least), ("at most", spec.max, self._most))
        self._range = " and ".join(f"{name} {self._dtype.type(end)!s}" for name, said, end in ends if said is not None)
        several = ", ".join([f"1 to {spec.max_samples}", *map(str, spec.shape)])
        self._allowed = f"a tensor {spec.dtype} {spec.shape}" + (f" or [{several}]" if spec.max_samples > 1 else "")

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers, which may be indices."""
        return self._dtype.kind in "iu"

    @property
    def low(self) -> int:
        """A whole number that a table has, as it has the next: the least of the range, or 0."""
        return int(self._least) if math.isfinite(self._least) else int(min(0.0, self._most))

    def bound(self, name: str, least: int, most: int) -> None:
        """Learn which indices the model's tables have, once it is loaded; raises InvalidEnsemble where the spec allows others."""
        for key, said, is_beyond in (("min", self._spec.min, self._least < least), ("max", self._spec.max, self._most > most)):
            if said is not None and is_beyond:
                raise InvalidEnsemble(f"{self._key}.{key}: found {said:.15g}; allowed: {least} to {most}, the model's embeddings")
        limits = np.iinfo(self._dtype)
        if least > max(self._least, limits.min) or most < min(self._most, limits.max):
            self._least, self._most = max(self._least, least), min(self._most, most)
            self._range = f"{int(self._least)} to {int(self._most)}, the model's embeddings"

    def decode(self, value: RawInput, min_size: Size = IN_FULL) -> Array:
        """Check that it is a tensor; each member checks its dtype and shape. Raises InvalidInput."""
        if isinstance(value, (bytes, str, tuple)):
            raise refuse(self.name, describe(value), self._allowed)
        return value

    def prepare(self, decoded: Array) -> Samples:
        """Check dtype, shape and values, and return [samples, *shape]; raises InvalidInput."""
        has_several = self.max_samples > 1 and decoded.ndim == len(self.tensor_shape) + 1
        samples = decoded if has_several else decoded[np.newaxis]
        is_expected = decoded.dtype == self._dtype and samples.shape[1:] == self.tensor_shape
        if not is_expected or not 1 <= len(samples) <= self.max_samples:
            raise refuse(self.name, describe(decoded), self._allowed)
        if self._dtype.kind == "f" and not np.isfinite(samples).all():
            raise refuse(self.name, "NaN or an infinity", "finite numbers")
        if self._range:
            least, most = samples.min(), samples.max()
            is_below = least.item() < self._least
            if is_below or most.item() > self._most:
                raise refuse(self.name, f"the number {least if is_below else most!s}", self._range)
        return (samples,)

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a tensor of normal numbers, or of zeros and ones where the dtype has no others in common; within the range.

        Whole numbers of the first two seeds are at the range's ends, so that one which the model cannot take shows at load.
        """
        random, size = np.random.default_rng(seed), (1, *self.tensor_shape)
        nearest = max(self._least, min(0.0, self._most))
        if self._dtype.kind == "f":
            return ((nearest + random.standard_normal(size)).clip(self._least, self._most).astype(self._dtype),)
        least = self._least if math.isfinite(self._least) else nearest
        most = self._most if math.isfinite(self._most) else nearest + 1
        if self._range and seed < 2:
            return (np.full(size, least if seed else most).astype(self._dtype),)
        return (random.integers(int(least), int(most), size, endpoint=True).astype(self._dtype),)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the staged tensor: [samples, *shape] of the spec's dtype."""
        return (staged[0],)


class UpstreamInput:
    """An output of another member of the same batch, copied on the device: one sample for each of that member's."""

    def __init__(self, name: str, upstream: int, select: int | str, shape: tuple[int, ...], max_samples: int) -> None:
        """Take samples float32 of `shape` from the member of the index `upstream`: its output of the name or position `select`."""
        self.name = name
        self.upstream = upstream
        self.select = select
        self.max_samples = max_samples
        self.buffers: tuple[BufferSpec, ...] = (BufferSpec("values", torch.float32, shape, is_upstream=True),)

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a sample of normal numbers."""
        return (np.random.default_rng(seed).standard_normal((1, *self.buffers[0].shape)).astype(np.float32),)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the staged tensor: float32 [samples, *shape]."""
        return (staged[0],)

"""Arguments: how a member's tensors become what its model takes, where the model says which dtype and layout that is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..spec import ImageInputSpec, InputSpec, TensorInputSpec
from .source import Source

IDS = (torch.int32, torch.int64, torch.float32, torch.float64)
"""What holds every token id; masks and types go into anything."""
RAW_PIXELS = (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64)
"""What a picture goes into as the numbers 0 to 255; into floats it goes as the member's file says."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model says of one of its inputs; `shape` has None for a size that may be any, and is None where nothing is said."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...] | None = None

    def __str__(self) -> str:
        """Return "float32 [any, 3, 16, 16]"."""
        sizes = "" if self.shape is None else f" [{', '.join('any' if size is None else str(size) for size in self.shape)}]"
        return f"{name_dtype(self.dtype)}{sizes}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one tensor is cast and laid out, on the device and without waiting for it: CUDA graphs hold this."""

    dtype: torch.dtype
    has_raw_pixels: bool = False
    """Whether pixels float32 0..1 become whole numbers 0..255; exact, for that is what they were."""
    is_channels_last: bool = False
    """Whether [samples, channels, height, width] becomes [samples, height, width, channels]."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the tensor as the model takes it."""
        if self.has_raw_pixels:
            tensor = (tensor * 255).round_()
        if self.is_channels_last:
            tensor = tensor.permute(0, 2, 3, 1)
        return tensor.to(self.dtype).contiguous()


def name_dtype(dtype: torch.dtype) -> str:
    """Return "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def list_arguments(inputs: Mapping[str, InputSpec]) -> Iterator[tuple[str, InputSpec, int]]:
    """Yield (input name, input spec, position within the input) of every tensor that a member gives its model."""
    for name, spec in inputs.items():
        for position in range(1 + spec.mask + spec.token_types if spec.kind == "text" else 1):
            yield name, spec, position


def make_adapters(source: Source, declared: Sequence[Declared]) -> tuple[Adapter | None, ...]:
    """Find what becomes of each of the member's tensors for a model that takes those `declared`, in this order.

    Raises InvalidEnsemble, with the key in the ensemble's file, where no cast and no layout would be right.
    """
    adapters: list[Adapter | None] = []
    for (name, spec, position), one in zip(list_arguments(source.spec.input), declared, strict=True):
        key = f"{source.key}.input.{name}"
        given = torch.float32
        adapter = Adapter(one.dtype)
        if isinstance(spec, ImageInputSpec):
            adapter = _adapt_image(key, spec, one)
        elif spec.kind == "text":
            given = torch.int64
            if position == 0 and one.dtype not in IDS:
                allowed = f"ids of {', '.join(map(name_dtype, IDS))}"
                raise InvalidEnsemble(f"{key}.kind: found 'text', and the model's {quote(one.name)} is {one}; allowed: {allowed}")
        else:
            given = getattr(torch, spec.dtype) if isinstance(spec, TensorInputSpec) else torch.float32
            _check_cast(key, given, one)
        adapters.append(None if adapter == Adapter(given) else adapter)
    return tuple(adapters)


def cast_floats(source: Source, dtype: torch.dtype) -> tuple[Adapter | None, ...]:
    """Cast the member's floats to `dtype`, for a model that says nothing of its inputs but computes in that alone."""
    adapter = None if dtype == torch.float32 else Adapter(dtype)
    return tuple(
        None if spec.kind == "text" or (isinstance(spec, TensorInputSpec) and "float" not in spec.dtype) else adapter
        for _, spec, _ in list_arguments(source.spec.input)
    )


def find_float_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the coarsest of some floating dtypes, in which a model that has them computes; float32 of none."""
    floats = [dtype for dtype in dtypes if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def find_own_dtype(tensors: Sequence[Tensor]) -> tuple[torch.dtype, bool]:
    """Return the coarsest floating dtype of a model's tensors, and whether it has no other."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return find_float_dtype(dtypes), len(dtypes) == 1


def _check_cast(key: str, given: torch.dtype, one: Declared) -> None:
    """Refuse a cast that could change whole numbers, or make some of others; raises InvalidEnsemble."""
    if given.is_floating_point and one.dtype.is_floating_point:
        return
    found, wanted = name_dtype(given), name_dtype(one.dtype)
    if one.dtype == torch.bfloat16 or not np.can_cast(found, wanted):
        raise InvalidEnsemble(f"{key}.dtype: found {found!r}, and the model's {quote(one.name)} is {one}; allowed: {wanted!r}")


def _adapt_image(key: str, spec: ImageInputSpec, one: Declared) -> Adapter:
    """Find dtype and layout for pixels float32 [samples, channels, height, width]; raises InvalidEnsemble."""
    what = f"the model's {quote(one.name)} is {one}"
    is_raw = not one.dtype.is_floating_point
    if is_raw and one.dtype not in RAW_PIXELS:
        raise InvalidEnsemble(f"{key}.kind: found 'image', and {what}; allowed: floats, or what holds pixels of 0 to 255")
    for field, values in (("mean", spec.mean), ("std", spec.std)):
        if is_raw and values:
            raise InvalidEnsemble(f"{key}.{field}: found {values}, and {what}, which takes pixels of 0 to 255; allowed: none")
    return Adapter(one.dtype, is_raw, one.shape is not None and _is_channels_last(key, spec, one.shape, what))


def _is_channels_last(key: str, spec: ImageInputSpec, shape: tuple[int | None, ...], what: str) -> bool:
    """Whether a model of this shape takes pixels last; where its sizes leave it open, they come after the channels."""

    def fits(*sizes: int) -> bool:
        return all(has in (None, size) for has, size in zip(shape[1:], sizes, strict=True))

    if len(shape) != 4:
        raise InvalidEnsemble(f"{key}.kind: found 'image', and {what}; allowed: samples, channels, height and width, in any order")
    if fits(spec.channels, *spec.size):
        return False
    if fits(*spec.size, spec.channels):
        return True
    is_last = shape[1] not in (None, spec.channels) and shape[3] in (None, spec.channels)
    if not is_last and shape[1] not in (None, spec.channels):
        raise InvalidEnsemble(f"{key}.color: found {spec.color!r}, of {spec.channels} channels, and {what}; allowed: what it takes")
    sides = [size or wanted for size, wanted in zip(shape[1:3] if is_last else shape[2:], spec.size, strict=True)]
    raise InvalidEnsemble(f"{key}.size: found {spec.size}, and {what}; allowed: {sides}")

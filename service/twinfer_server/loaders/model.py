"""What every loader returns: a model that is ready to be called; and what several of them may share."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .arguments import Adapter

MIN_SHARED_BYTES = 4096
"""Smaller tensors are not worth the comparison."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model on its device, in inference mode for good, safe to call from several threads.

    `module` takes the member's arguments by position, each as its adapter leaves it. `digest` is the sha256 of all files that it
    came from, empty where they are not known. `is_capturable` is False where the loader knows that no CUDA graph can hold a call.
    `checked` is the same model with checks of its arguments' shapes that are too slow for every batch; it is called when the
    member is loaded. `dtype` is that of the floats that it was saved with. `fixed_samples` is how many samples it says to take,
    None for any number.
    """

    module: Callable[..., object]
    loader: str
    parameter_bytes: int
    digest: str = ""
    is_capturable: bool = True
    checked: Callable[..., object] | None = None
    adapters: tuple[Adapter | None, ...] = ()
    dtype: torch.dtype = torch.float32
    fixed_samples: int | None = None

    def adapt(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Cast and lay out a member's tensors as the model takes them; empty adapters leave all as they are."""
        if not any(self.adapters):
            return tuple(arguments)
        pairs = zip(self.adapters, arguments, strict=True)
        return tuple(adapter.apply(argument) if adapter else argument for adapter, argument in pairs)


def list_tensors(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the memory behind some tensors; what several of them share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class SharedStorages:
    """The parameters and buffers of the models loaded so far, by their content: what members have in common is kept once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[object, Tensor] = {}

    def share(self, model: LoadedModel) -> int:
        """Point a model's parameters and buffers to an earlier model's equal ones; return the bytes that this saves.

        Only of models that compute with their `nn.Module`'s own tensors: TorchScript, ONNX Runtime and compiled packages hold
        theirs. Models are in inference mode for good, so none writes to what is shared.
        """
        module = getattr(model.module, "__self__", model.module)
        if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
            return 0
        saved: dict[int, int] = {}
        for tensor in list_tensors(module):
            if type(tensor) not in (Tensor, nn.Parameter) or tensor.nbytes < MIN_SHARED_BYTES:
                continue  # a quantised one is made of several tensors
            if tensor.nbytes != tensor.untyped_storage().nbytes():
                continue  # a part of another tensor
            pointer = tensor.untyped_storage().data_ptr()
            # Flat, for the strides of a dimension of 1 mean nothing, and what has channels last has others there.
            content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
            key = hashlib.sha256(content.tobytes()).digest(), tensor.dtype, tuple(tensor.shape), tensor.stride()
            first = self._known.setdefault(key, tensor)
            if first.untyped_storage().data_ptr() != pointer:
                saved[pointer] = tensor.nbytes
                tensor.data = first.data
        return sum(saved.values())

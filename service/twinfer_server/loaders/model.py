"""What every loader gives: a model that is ready to be called."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model on its device, in inference mode for good, safe to call from several threads.

    `module` takes the member's arguments by position. `digest` is the sha256 of the file that it came from, empty where
    there is no one file. `is_capturable` is False where the loader knows that no CUDA graph can hold a call.
    """

    module: Callable[..., object]
    loader: str
    parameter_bytes: int
    digest: str = ""
    workload: str = ""
    """Where Python made it, and no digest speaks for it: the sha256 of what its time hangs upon, if that can be told."""
    is_capturable: bool = True
    checked: Callable[..., object] | None = None
    """The same model with checks of its arguments that are too slow for every flight; probing calls it."""


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Add up the memory behind some tensors; what several of them share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

"""Sharing: what several members' models have alike lies in memory once."""

import hashlib

import torch
from torch import Tensor, nn

from .model import LoadedModel

MIN_SHARED_BYTES = 4096
"""Smaller ones are not worth the looking."""

Key = tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...]]


class SharedStorages:
    """The parameters and buffers of the models seen so far, by their content."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[Key, Tensor] = {}

    def share(self, model: LoadedModel) -> int:
        """Let a model's parameters and buffers lie where an equal one of an earlier model lies; gives the bytes that this saves.

        Only of models that compute with their `nn.Module`'s own tensors: what TorchScript, ONNX Runtime or a compiled package
        holds is theirs. The models are in inference mode for good, so nobody writes to what is shared.
        """
        module = getattr(model.module, "__self__", model.module)
        if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
            return 0
        saved: dict[int, int] = {}
        for tensor in [*module.parameters(), *module.buffers()]:
            if type(tensor) not in (Tensor, nn.Parameter):
                continue  # a quantised one is made of several
            if tensor.nbytes < MIN_SHARED_BYTES or tensor.nbytes != tensor.untyped_storage().nbytes():
                continue
            pointer = tensor.untyped_storage().data_ptr()
            first = self._known.setdefault(_find_key(tensor), tensor)
            if first.untyped_storage().data_ptr() != pointer:
                saved[pointer] = tensor.nbytes
                tensor.data = first.data
        return sum(saved.values())


def _find_key(tensor: Tensor) -> Key:
    # Flat, for the strides of a dimension of 1 mean nothing, and what has channels last has others there.
    content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest(), tensor.dtype, tuple(tensor.shape), tensor.stride()

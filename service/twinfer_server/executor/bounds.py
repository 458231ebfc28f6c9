"""Bounds: how far token ids, token types, indices and lengths may go, found out at load, so that the door refuses what is beyond.

Made-up samples are computed while torch says which tables are looked up, and with what: a table that is looked up with just the
numbers of one tensor bounds that tensor, and one that is looked up with 0, 1, 2, ... the number of tokens. Nothing out of bounds is
computed for that; on a GPU it would cost the process. What computes on the CPU is also tried with the largest id, and where it
raises, with smaller ones until it does not: of ONNX Runtime's tables and of compiled ones torch knows nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InvalidEnsemble
from ..inputs import TensorInput, TextInput
from ..loaders import LoadedModel, list_tensors
from ..types import Array
from .member import Member

logger = logging.getLogger(__name__)

SAMPLES = 8
"""Of a tensor of one number a single sample would not show that a table is looked up with it."""
TOKENS = 8
LOW_ID = 2
"""This id and the next are in every vocabulary, and seldom the padding, for which some models count no position."""
UNSEEN = ("onnx", "aotinductor")
"""The loaders whose models do not compute through torch's dispatcher."""
Parts = Mapping[str, Mapping[str, Array]]
"""By input and buffer name, the arrays of a member's samples."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A look into a table of so many rows; `is_embedding` says that a negative index is none."""

    rows: int
    indices: NDArray[np.int64]
    is_embedding: bool


class Lookups(TorchDispatchMode):
    """Notes what the calling thread looks up in tables while it is on."""

    def __init__(self, model: LoadedModel) -> None:
        """Take the model: beside embeddings only its own tensors are tables."""
        super().__init__()
        self.found: list[Lookup] = []
        module = getattr(model.module, "__self__", model.module)
        tensors = list_tensors(module) if isinstance(module, nn.Module) else []
        self._tables = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Have torch compute, and note what it looks up."""
        name, indices = func._schema.name.removeprefix("aten::"), None
        if name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"):
            indices = args[1]
        elif name == "index_select" and args[1] == 0 and self._is_table(args[0]):
            indices = args[2]
        elif name == "index" and len(args[1]) == 1 and self._is_table(args[0]):
            [indices] = args[1]
        if indices is not None and indices.dtype in (torch.int32, torch.int64):
            self.found.append(Lookup(len(args[0]), indices.cpu().numpy().astype(np.int64), name != "index"))
        return func(*args, **(kwargs or {}))

    def _is_table(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._tables


def bound_inputs(member: Member) -> None:
    """Tell a member's inputs how far they may go; raises InvalidEnsemble where one has to go further.

    Call it in inference mode, on a thread that the device has prepared, with nothing under way.
    """
    kinds = [
        kind for kind in member.request_inputs if isinstance(kind, TextInput) or (isinstance(kind, TensorInput) and kind.is_whole)
    ]
    if not kinds:
        return
    if member.model.loader not in UNSEEN:
        parts, lookups = _look_up(member)
        for kind in kinds:
            for name, array in parts.get(kind.name, {}).items():
                _bound(kind, name, array, lookups)
    for kind in kinds:
        if isinstance(kind, TextInput) and (member.model.loader == "onnx" or member.device.torch_device.type == "cpu"):
            _try_largest(member, kind)


def _look_up(member: Member) -> tuple[Parts, list[Lookup]]:
    """Compute made-up samples of few tokens, or where that raises of as many as there can be, and note what is looked up."""
    for tokens in dict.fromkeys((min(TOKENS, member.token_sizes[-1]), member.token_sizes[-1])):
        parts, lookups = _make_parts(member, tokens), Lookups(member.model)
        try:
            with lookups:
                _compute(member, parts)
        except Exception as error:  # what is wrong with it, if it is more than the length, shows when it is checked
            logger.debug("member %s raised on %d tokens", member.name, tokens, exc_info=error)
        else:
            return parts, lookups.found
    return {}, []


def _make_parts(member: Member, tokens: int) -> dict[str, dict[str, Array]]:
    """Make samples of low ids in a pattern that only they have, and of the type 0; other inputs have their own examples."""
    has_text = any(isinstance(kind, TextInput) for kind in member.inputs)
    count = 1 if has_text else min(SAMPLES, member.max_samples)
    parts: dict[str, dict[str, Array]] = {}
    for kind in member.inputs:
        examples = [kind.example(2 + seed, tokens) for seed in range(count)]
        arrays = [np.concatenate([example[position][:1] for example in examples]) for position in range(len(kind.buffers))]
        parts[kind.name] = dict(zip((buffer.name for buffer in kind.buffers), arrays, strict=True))
        if isinstance(kind, TextInput):
            low = max(0, min(LOW_ID, kind.most_id - 1))
            pattern = low + np.random.default_rng(0).integers(0, 2, (count, tokens))
            made = {"ids": pattern, "length": np.full(count, tokens), "types": np.zeros((count, tokens))}
            parts[kind.name] = {name: made[name] for name in parts[kind.name]}
    return parts


def _compute(member: Member, parts: Parts) -> None:
    member.compute_samples(tuple(array for kind in member.inputs for array in parts[kind.name].values()))


def _bound(kind: TextInput | TensorInput, name: str, array: Array, lookups: list[Lookup]) -> None:
    """Bound an input by the tables that are looked up with just what its buffer `name` holds, or of texts with the positions."""
    for lookup in lookups:
        if lookup.indices.size == array.size:
            shifts = np.unique(lookup.indices.reshape(-1) - array.reshape(-1).astype(np.int64))
            is_it = len(shifts) == 1 and len(np.unique(array)) > 1
            if is_it or (name == "types" and lookup.is_embedding and not shifts.any()):
                kind.bound(name, (0 if lookup.is_embedding else -lookup.rows) - int(shifts[0]), lookup.rows - 1 - int(shifts[0]))
        if name == "ids" and lookup.is_embedding and lookup.indices.size % array.shape[1] == 0:
            offsets = np.unique(lookup.indices.reshape(-1, array.shape[1]) - np.arange(array.shape[1]))
            if len(offsets) == 1 and array.shape[1] > 1:
                kind.bound("tokens", 1, lookup.rows - int(offsets[0]))


def _try_largest(member: Member, kind: TextInput) -> None:
    """Compute the largest id, and the type 1, of a text; bound it by the largest that the member does not raise on."""
    tokens = member.token_sizes[0]
    for name, low, high in (("types", 0, 1), ("ids", 0, kind.most_id)):

        def is_taken(value: int, name: str = name) -> bool:
            parts = _make_parts(member, tokens)
            if name not in parts[kind.name]:
                return True
            parts[kind.name][name][:] = value
            try:
                _compute(member, parts)
            except Exception:
                return False
            return True

        if is_taken(high) or not is_taken(low):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_taken(middle) else (low, middle)
        kind.bound(name, 0, low)


def explain_length(member: Member, error: Exception) -> InvalidEnsemble | None:
    """Say of a member that raised `error` on a text of the most tokens how many it takes; None where the length is not to blame."""
    texts = [kind for kind in member.request_inputs if isinstance(kind, TextInput)]
    low, high = 1, member.token_sizes[-1]

    def is_taken(tokens: int) -> bool:
        try:
            _compute(member, _make_parts(member, tokens))
        except Exception:
            return False
        return not member.device.find_loss()

    if len(texts) != 1 or not is_taken(low) or is_taken(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_taken(middle) else (low, middle)
    return texts[0].refuse_length(low, f"; on more it raises {type(error).__name__}: {error}")

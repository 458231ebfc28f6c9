"""Bounds: how far token ids, token types, indices and lengths may go, found out at load, so that the door refuses what is beyond.

Made-up samples are computed while torch says which tables are looked up, and with what: a table that is looked up with just the
numbers of one tensor bounds that tensor, and one that is looked up with 0, 1, 2, ... the number of tokens. Nothing out of bounds is
computed for that; on a GPU it would cost the process. What computes on the CPU is also tried with the largest id, and where it
raises, with smaller ones until it does not: of ONNX Runtime's tables and of compiled ones torch knows nothing.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
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
UNSEEN = ("onnx", "aotinductor")
"""The loaders whose models do not compute through torch's dispatcher."""
LOOKUPS = {
    "embedding": (0, 1), "embedding_bag": (0, 1), "_embedding_bag": (0, 1), "_embedding_bag_forward_only": (0, 1),
    "index_select": (0, 2), "index": (0, 1), "one_hot": (1, 0),
}  # fmt: skip
"""The operations that look something up: where among their arguments the table, or its size, stands, and where the indices."""
KEEPING = {
    "to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh", "reshape", "view", "_unsafe_view",
    "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "t", "transpose", "permute", "slice", "narrow", "add", "sub",
}  # fmt: skip
"""Operations after which a tensor holds the same numbers, or, as the comparison shows, numbers that are all off by the same."""
Parts = Mapping[str, Mapping[str, Array]]
"""By input and buffer name, the arrays of a member's samples."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A look into a table of so many rows; `is_given` says that the indices are an argument's numbers, or all off by the same.

    `is_embedding` says that a negative index is none.
    """

    rows: int
    indices: NDArray[np.int64]
    is_given: bool
    is_embedding: bool


class Lookups(TorchDispatchMode):
    """Notes what the calling thread looks up in tables while it is on."""

    def __init__(self, model: LoadedModel, arguments: Sequence[Tensor]) -> None:
        """Take the model, and what it will be called with: beside embeddings only its own tensors are tables."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Lookup] = []
        module = getattr(model.module, "__self__", model.module)
        tensors = list_tensors(module) if isinstance(module, nn.Module) else []
        self._tables = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._given = {id(argument): argument for argument in arguments}
        """By their ids, the tensors that still hold an argument's numbers; kept, so that no other one gets such an id."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Have torch compute, and note what it looks up."""
        name = func._schema.name.removeprefix("aten::")
        outputs = func(*args, **(kwargs or {}))
        if name in LOOKUPS and (name != "index" or len(args[1]) == 1):
            self._note(name, args)
        elif args and id(args[0]) in self._given:
            if name in KEEPING:
                self._given[id(outputs)] = outputs
            elif outputs is args[0]:  # it has been written to
                del self._given[id(outputs)]
        return outputs

    def _note(self, name: str, args: Any) -> None:
        """Note an operation that looks something up, if it is in a table."""
        table, indices = args[LOOKUPS[name][0]], args[LOOKUPS[name][1]]
        indices = indices[0] if name == "index" else indices
        if name in ("index", "index_select"):
            is_table = table.untyped_storage().data_ptr() in self._tables and (name == "index" or args[1] == 0)
        else:
            is_table = name != "one_hot" or table > 0
        if is_table and indices is not None and indices.dtype in (torch.int32, torch.int64):
            rows = table if name == "one_hot" else len(table)
            self.found.append(Lookup(rows, indices.cpu().numpy().astype(np.int64), id(indices) in self._given, name != "index"))


def bound_inputs(member: Member) -> None:
    """Tell a member's inputs how far they may go; raises InvalidEnsemble where one has to go further.

    Call it in inference mode, on a thread that the device has prepared, with nothing under way.
    """
    kinds = [
        kind for kind in member.request_inputs if isinstance(kind, TextInput) or (isinstance(kind, TensorInput) and kind.is_whole)
    ]
    if not kinds:
        return
    is_tried = member.model.loader == "onnx" or member.device.torch_device.type == "cpu"
    if member.model.loader not in UNSEEN:
        parts, lookups = _look_up(member)
        for kind in kinds:
            for name, array in parts.get(kind.name, {}).items():
                _bound(kind, name, array, lookups)
            if isinstance(kind, TextInput) and not (is_tried and _is_taken(member, _most_tokens(member))):
                _bound_tokens(kind, parts, lookups)
    for kind in kinds:
        if isinstance(kind, TextInput) and is_tried:
            _try_largest(member, kind)


def _look_up(member: Member) -> tuple[Parts, list[Lookup]]:
    """Compute made-up samples of few tokens, or where that raises of as many as there can be, and note what is looked up.

    Where that raises too, texts begin and end as the tokenizer's do: some heads look for that.
    """
    most = _most_tokens(member)
    for tokens, is_framed in dict.fromkeys(((min(TOKENS, most), False), (most, False), (min(TOKENS, most), True))):
        parts = _make_parts(member, tokens, is_framed=is_framed)
        arguments = _arrange(member, parts)
        lookups = Lookups(member.model, arguments)
        try:
            with lookups:
                member.model.module(*arguments)
        except Exception as error:  # what is wrong with it, if it is more than the length, shows when it is checked
            logger.debug("member %s raised on %d tokens", member.name, tokens, exc_info=error)
        else:
            return parts, lookups.found
    return {}, []


def _most_tokens(member: Member) -> int:
    return max((kind.buffers[0].shape[0] for kind in member.inputs if isinstance(kind, TextInput)), default=0)


def _make_parts(member: Member, tokens: int, *, is_framed: bool = False) -> dict[str, dict[str, Array]]:
    """Make samples of low numbers in a pattern that only they have, and of the type 0; other inputs have their own examples."""
    has_text = any(isinstance(kind, TextInput) for kind in member.inputs)
    count = 1 if has_text else min(SAMPLES, member.max_samples)
    random = np.random.default_rng(0)
    parts: dict[str, dict[str, Array]] = {}
    for kind in member.inputs:
        examples = [kind.example(seed, tokens) for seed in range(count)]
        arrays = [np.concatenate([example[position][:1] for example in examples]) for position in range(len(kind.buffers))]
        if isinstance(kind, TensorInput) and kind.is_whole:
            arrays = [kind.low + random.integers(0, 2, arrays[0].shape)]
        made = dict(zip((buffer.name for buffer in kind.buffers), arrays, strict=True))
        if isinstance(kind, TextInput):
            ids = kind.low + random.integers(0, 2, (count, tokens))
            if is_framed:
                kind.frame(ids)
            patterns = {"ids": ids, "length": np.full(count, tokens), "types": np.zeros_like(ids)}
            made = {name: patterns[name] for name in made}
        parts[kind.name] = made
    return parts


def _arrange(member: Member, parts: Parts) -> tuple[Tensor, ...]:
    return member.arrange_samples(tuple(array for kind in member.inputs for array in parts[kind.name].values()))


def _is_taken(member: Member, tokens: int, change: Callable[[Parts], None] = lambda parts: None) -> bool:
    """Whether the member computes a made-up sample of so many tokens without raising, once `change` has changed it."""
    parts = _make_parts(member, tokens)
    change(parts)
    try:
        member.read(member.model.module(*_arrange(member, parts)))
    except Exception:
        return False
    return not member.device.find_loss()


def _find_most(low: int, high: int, is_taken: Callable[[int], bool]) -> int | None:
    """Find the largest number from `low` on that is taken where `high` is not; None where that is, or not even `low`."""
    if is_taken(high) or not is_taken(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_taken(middle) else (low, middle)
    return low


def _bound(kind: TextInput | TensorInput, name: str, array: Array, lookups: Sequence[Lookup]) -> None:
    """Bound what an input's buffer `name` holds by the tables that are looked up with it."""
    for lookup in lookups:
        if lookup.is_given and lookup.indices.size == array.size:
            shifts = np.unique(lookup.indices.reshape(-1) - array.reshape(-1).astype(np.int64))
            # The types are all 0, and so is no other argument that is looked up.
            if len(shifts) == 1 and (len(np.unique(array)) == 1) == (name == "types"):
                least = 0 if lookup.is_embedding else -lookup.rows
                kind.bound(name, least - int(shifts[0]), lookup.rows - 1 - int(shifts[0]))


def _bound_tokens(kind: TextInput, parts: Parts, lookups: Sequence[Lookup]) -> None:
    """Bound the number of tokens by the tables that are looked up with 0, 1, 2, ... or from another number on."""
    tokens = parts[kind.name]["ids"].shape[1] if kind.name in parts else 0
    for lookup in lookups:
        if lookup.is_embedding and tokens > 1 and lookup.indices.size % tokens == 0:
            offsets = np.unique(lookup.indices.reshape(-1, tokens) - np.arange(tokens))
            if len(offsets) == 1:
                kind.bound("tokens", 1, lookup.rows - int(offsets[0]))


def _try_largest(member: Member, kind: TextInput) -> None:
    """Compute the largest id, and the type 1, of a text; bound it by the largest that the member does not raise on."""
    for name, high in (("types", 1), ("ids", kind.most_id)):

        def is_taken(value: int, name: str = name) -> bool:
            def change(parts: Parts) -> None:
                if name in parts[kind.name]:
                    parts[kind.name][name][:] = value

            return _is_taken(member, member.token_sizes[0] or _most_tokens(member), change)

        most = _find_most(0, high, is_taken)
        if most is not None:
            kind.bound(name, 0, most)


def explain_length(member: Member, error: Exception) -> InvalidEnsemble | None:
    """Say of a member that raised `error` on a text of the most tokens how many it takes; None where the length is not to blame."""
    texts = [kind for kind in member.request_inputs if isinstance(kind, TextInput)]
    most = _find_most(1, _most_tokens(member), lambda tokens: _is_taken(member, tokens)) if len(texts) == 1 else None
    return None if most is None else texts[0].refuse_length(most, f"; on more it raises {type(error).__name__}: {error}")

"""Texts: UTF-8 or ready token ids in; int64 ids, and a mask where the member takes one, to the member."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..rows import Array, RawInput, Samples
from ..spec import TextInputSpec
from .kind import InputLimits, describe, refuse
from .staging import Staging


class TextInput:
    """A text input of one member; decoded, it is still the text (tokenizers differ by member), or the ready ids.

    With a mask, samples are as long as their text and the flight pads them; without one the member could not tell
    padding from text, so every sample is padded to `max_tokens` and an answer never depends on the neighbours' lengths.
    """

    def __init__(self, key: str, name: str, spec: TextInputSpec, folder: Path, limits: InputLimits) -> None:
        """Read the tokenizer; raises InvalidEnsemble where that cannot be used."""
        self.name = name
        self.tensor_dtype = "int64"
        self.tensor_shape: tuple[int, ...] = (-1,)
        self.max_tokens = spec.max_tokens
        ids = Staging("ids", torch.int32, (spec.max_tokens,), is_ragged=spec.mask, fill=spec.pad_id)
        self.staging: tuple[Staging, ...] = (ids, Staging("length", torch.int32, ())) if spec.mask else (ids,)
        self._max_bytes = limits.max_text_bytes
        self._tokenizer = _read_tokenizer(f"{key}.tokenizer", folder / spec.tokenizer)
        self._vocabulary = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        # The file's own truncation and padding are for whoever made it; the spec's count here.
        self._tokenizer.no_padding()
        special_tokens = self._tokenizer.num_special_tokens_to_add(False)
        if special_tokens >= spec.max_tokens:
            raise InvalidEnsemble(
                f"{key}.max_tokens: found {spec.max_tokens}; allowed: more than the {special_tokens} tokens that the "
                "tokenizer adds to every text"
            )
        self._tokenizer.enable_truncation(spec.max_tokens)
        self._device = torch.device("cpu")

    def decode(self, value: RawInput) -> str | Array:
        """Check the kind of value and a text's size; raises InvalidInput."""
        if isinstance(value, bytes):
            raise refuse(self.name, describe(value), "a text, or a tensor int32 or int64 [tokens] of token ids")
        if isinstance(value, str):
            try:
                size = len(value.encode())
            except UnicodeEncodeError as error:
                raise refuse(self.name, f"a text that is no Unicode ({error.reason})", "a text") from None
            if size > self._max_bytes:
                raise refuse(self.name, f"a text of {size} bytes", f"at most {self._max_bytes} bytes of UTF-8")
        return value

    def prepare(self, decoded: str | Array) -> Samples:
        """Make int32 ids [1, tokens] and their length int32 [1]; without a mask, int32 ids [1, max_tokens] alone."""
        ids = self._tokenize(decoded) if isinstance(decoded, str) else self._read_ids(decoded)
        if len(self.staging) == 2:
            return ids[np.newaxis], np.array([len(ids)], dtype=np.int32)
        padded = np.full((1, self.max_tokens), self.staging[0].fill, dtype=np.int32)
        padded[0, : len(ids)] = ids
        return (padded,)

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a text of random tokens."""
        length = tokens if self.staging[0].is_ragged else self.max_tokens
        ids = np.random.default_rng(seed).integers(0, self._vocabulary, (1, length), dtype=np.int32)
        return (ids, np.array([length], dtype=np.int32)) if len(self.staging) == 2 else (ids,)

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn int32 ids [n, tokens] (and lengths [n]) into int64 ids (and int64 mask), both [n, tokens]."""
        ids = staged[0].to(torch.int64)
        if len(self.staging) == 1:
            return (ids,)
        positions = torch.arange(ids.shape[1], dtype=torch.int32, device=self._device)
        return ids, (positions < staged[1].unsqueeze(1)).to(torch.int64)

    def to(self, device: torch.device) -> None:
        """Remember where the mask is made."""
        self._device = device

    def _tokenize(self, text: str) -> NDArray[np.int32]:
        try:
            ids = self._tokenizer.encode(text).ids
        except Exception as error:  # tokenizers raises plain Exception: a word outside a vocabulary without "unknown"
            raise refuse(self.name, f"{describe(text)} ({error})", "a text that the tokenizer can read") from None
        if not ids:
            # Nothing to attend to: many models would answer NaN.
            raise refuse(self.name, f"{describe(text)}, which has no token", "a text with at least one token")
        return np.array(ids, dtype=np.int32)

    def _read_ids(self, ids: Array) -> NDArray[np.int32]:
        if ids.dtype not in (np.int32, np.int64) or ids.ndim != 1:
            raise refuse(self.name, describe(ids), "a text, or a tensor int32 or int64 [tokens] of token ids")
        if not 1 <= len(ids) <= self.max_tokens:
            raise refuse(self.name, f"{len(ids)} token ids", f"1 to {self.max_tokens}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._vocabulary:
            found = f"token id {low if low < 0 else high}"
            raise refuse(self.name, found, f"0 to {self._vocabulary - 1}, the tokenizer's vocabulary")
        return ids.astype(np.int32)


def _read_tokenizer(key: str, path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise InvalidEnsemble(
            f"{key}: found {quote(path.name)}, which tokenizers cannot read ({error}); allowed: a tokenizer.json"
        ) from error

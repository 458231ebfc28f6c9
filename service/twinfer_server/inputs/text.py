"""Texts: UTF-8 or ready token ids in; int64 ids, a mask and token types, where the member takes them, to the member."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from ..errors import InvalidEnsemble, outline, quote, without_panics
from ..spec import PREFIX, TextInputSpec, find_directory, open_tokenizer, read_file
from ..types import Array, RawInput, Samples
from .kind import IN_FULL, BufferSpec, InputLimits, Size, describe, refuse

logger = logging.getLogger(__name__)

MOST_ID = 2**24 - 1
"""Of a token; no vocabulary has so many, and tables are made of that size."""
MOST_NAMED = 5
"""How many of the tokens that a model has no embedding for are named."""


class TextInput:
    """A text input of one member; decoded, it is still the texts (tokenizers differ by member), or the ready ids.

    With a mask, samples are as long as the request's longest text and the batch pads them; without one the member could not tell
    padding from text, so every sample is padded to `max_tokens` and an answer never depends on the neighbours' lengths.
    """

    def __init__(self, key: str, name: str, spec: TextInputSpec, folder: Path, limits: InputLimits, device: torch.device) -> None:
        """Read the tokenizer; raises InvalidEnsemble where that cannot be used."""
        self.name = name
        self.tensor_dtype = "int64"
        self.tensor_shape: tuple[int, ...] = (2, -1) if spec.token_types else (-1,)
        self.max_samples = spec.max_samples
        self.min_size: Size = (0, 0)
        self.buffers: tuple[BufferSpec, ...] = (
            BufferSpec("ids", torch.int32, (spec.max_tokens,), is_ragged=spec.mask, fill=spec.pad_id),
        )
        if spec.mask:
            self.buffers += (BufferSpec("length", torch.int32, ()),)
        if spec.token_types:
            self.buffers += (BufferSpec("types", torch.int32, (spec.max_tokens,), is_ragged=True),)
        ready = "[2, tokens] of token ids and types" if spec.token_types else "[tokens] of token ids"
        self._allowed = f"{'two texts' if spec.pair else 'a text'}, or a tensor int32 or int64 {ready}"
        self._key = key
        self.spec = spec
        self.folder = folder
        self.max_bytes = limits.max_text_bytes
        self._tokenizer = _read_tokenizer(key, folder, spec)
        self.most_id = max(self._tokenizer.get_vocab().values(), default=-1)
        """The largest id that the tokenizer makes and the member takes."""
        if self.most_id > MOST_ID:
            raise InvalidEnsemble(f"{key}.tokenizer: found a token of the id {self.most_id}; allowed: at most {MOST_ID}")
        self._whose_ids = "the tokenizer's vocabulary"
        self._most_type = 2**31 - 1
        special = [id_ for id_, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]
        self._ordinary = np.setdiff1d(np.arange(self.most_id + 1), [spec.pad_id, *special])
        try:
            with without_panics():
                self._frame = _find_frame(self._tokenizer)
        except ValueError as error:
            raise _refuse_tokenizer(key, spec, error) from None

    @property
    def low(self) -> int:
        """An id that every model has an embedding for, as for the next: seldom the padding, for which some count no position."""
        return max(0, min(2, self.most_id - 1))

    def bound(self, name: str, least: int, most: int) -> None:
        """Learn how far the member's "ids" and "types" go, and how many "tokens" it takes, once its model is loaded.

        Raises InvalidEnsemble where all texts, or their padding, go further; of tokens that do it warns.
        """
        if name == "tokens" and most < self.spec.max_tokens:
            raise self.refuse_length(most, ", for so many positions the model has")
        if name == "types":
            self._most_type = min(self._most_type, most)
        if name != "ids" or most >= self.most_id:
            return
        self.most_id, self._whose_ids = most, "the model's embeddings"
        allowed = f"0 to {most}, {self._whose_ids}"
        if self.spec.pad_id > most:
            raise InvalidEnsemble(f"{self._key}.pad_id: found {self.spec.pad_id}; allowed: {allowed}")
        if any(number > most for number in self._encode([("", "") if self.spec.pair else ""])[0].ids):
            found = f"a tokenizer that adds a token beyond the id {most} to every text"
            raise InvalidEnsemble(f"{self._key}.tokenizer: found {found}; allowed: {allowed}")
        beyond = sorted((number, token) for token, number in self._tokenizer.get_vocab().items() if number > most)
        named = ", ".join(f"{quote(token, 20)} ({number})" for number, token in beyond[:MOST_NAMED])
        logger.warning(
            "%s.tokenizer: the model has embeddings up to the id %d, and beyond are %d tokens: %s%s; a text with one is refused",
            self._key, most, len(beyond), named, ", ..." if len(beyond) > MOST_NAMED else "",
        )  # fmt: skip

    def refuse_length(self, most: int, why: str) -> InvalidEnsemble:
        """Make the error for a model that takes no more than `most` tokens."""
        return InvalidEnsemble(f"{self._key}.max_tokens: found {self.spec.max_tokens}; allowed: at most {most}{why}")

    def decode(self, value: RawInput, min_size: Size = IN_FULL) -> tuple[str, ...] | Array:
        """Check the kind of value and each text's size; raises InvalidInput."""
        if isinstance(value, bytes):
            raise refuse(self.name, describe(value), self._allowed)
        if not isinstance(value, (str, tuple)):
            return value
        texts = (value,) if isinstance(value, str) else value
        for text in texts:
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                raise refuse(self.name, f"a text that is no Unicode ({error.reason})", "a text") from None
            if size > self.max_bytes:
                raise refuse(self.name, f"a text of {size} bytes", f"at most {self.max_bytes} bytes of UTF-8")
        return texts

    def prepare(self, decoded: tuple[str, ...] | Array) -> Samples:
        """Make int32 ids [samples, tokens], with a mask lengths [samples] too, and types [samples, tokens]; raises InvalidInput."""
        if isinstance(decoded, tuple):
            encodings = self._tokenize(decoded)
            ids, types = [encoding.ids for encoding in encodings], [encoding.type_ids for encoding in encodings]
            self._check_tokens(decoded, encodings)
        else:
            ready = self._read_ids(decoded)
            ids, types = ready[:1], ready[1:]
        lengths = [len(sample) for sample in ids]
        tokens = max(lengths) if self.spec.mask else self.spec.max_tokens
        samples: Samples = (_pad(ids, tokens, self.spec.pad_id),)
        if self.spec.mask:
            samples += (np.array(lengths, dtype=np.int32),)
        if self.spec.token_types:
            samples += (_pad(types, tokens, 0),)
        return samples

    def example(self, seed: int, tokens: int) -> Samples:
        """Make a text of random tokens, as many as asked where the member takes a mask, else `max_tokens`.

        It begins and ends as the tokenizer's texts do, for some models look for that, and has no special tokens within.
        """
        length = min(tokens, self.spec.max_tokens) if self.spec.mask else self.spec.max_tokens
        random = np.random.default_rng(seed)
        ordinary = self._ordinary[self._ordinary <= self.most_id]
        ids = random.choice(ordinary if len(ordinary) else [0], (1, length)).astype(np.int32)
        self.frame(ids)
        arrays = {
            "ids": ids,
            "length": np.array([length], dtype=np.int32),
            "types": random.integers(0, min(1, self._most_type) + 1, (1, length), dtype=np.int32),
        }
        return tuple(arrays[buffer.name] for buffer in self.buffers)

    def frame(self, ids: NDArray[Any]) -> None:
        """Let ids [samples, tokens] begin and end as the tokenizer's texts do, where there is room for more."""
        begin, end = self._frame
        if ids.shape[1] > len(begin) + len(end):
            ids[:, : len(begin)], ids[:, ids.shape[1] - len(end) :] = begin, end

    def arguments(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn int32 ids [n, tokens] (lengths [n], types [n, tokens]) into int64 ids (mask, types), each [n, tokens]."""
        ids = staged[0].to(torch.int64)
        if len(staged) == 1:
            return (ids,)
        positions = torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device)
        mask = (positions < staged[1].unsqueeze(1)).to(torch.int64)
        return ids, mask, *(types.to(torch.int64) for types in staged[2:])

    def _tokenize(self, texts: tuple[str, ...]) -> list[Encoding]:
        prompt = self.spec.prompt
        is_allowed = len(texts) == 2 if self.spec.pair else len(texts) <= self.max_samples
        if not is_allowed:
            allowed = "2 texts, the first and the second of a pair" if self.spec.pair else f"1 to {self.max_samples}"
            raise refuse(self.name, describe(texts), allowed)
        given = [prompt + text for text in texts]
        inputs: list[str | tuple[str, ...]] = [(given[0], texts[1])] if self.spec.pair else [*given]
        try:
            encodings = self._encode(inputs)
        except Exception as error:  # tokenizers raises plain Exception: a word outside a vocabulary without "unknown"
            found = describe(texts if len(texts) > 1 else texts[0])
            raise refuse(self.name, f"{found} ({error})", "a text that the tokenizer can read") from None
        for text, encoding in zip(inputs, encodings, strict=True):
            if not encoding.ids:
                # Nothing to attend to: many models would answer NaN.
                raise refuse(self.name, f"{describe(text)}, which has no token", "a text with at least one token")
        return encodings

    def _encode(self, inputs: list[str | tuple[str, ...]]) -> list[Encoding]:
        # The batch's call, even for one text: unlike `encode` it lets other threads run meanwhile.
        try:
            return self._tokenizer.encode_batch_fast(inputs)
        except BaseException:
            with without_panics():
                raise

    def _check_tokens(self, texts: tuple[str, ...], encodings: Sequence[Encoding]) -> None:
        """Refuse texts with a token, or the type of one, that the model has no embedding for; raises InvalidInput."""
        for encoding, text in zip(encodings, texts, strict=False):  # a pair has one encoding
            if max(encoding.ids) > self.most_id:
                number = next(number for number in encoding.ids if number > self.most_id)
                token = quote(self._tokenizer.id_to_token(number), 20)
                found = f"the token {token}, id {number}, in {describe(texts if self.spec.pair else text)}"
                raise refuse(self.name, found, f"token ids 0 to {self.most_id}, {self._whose_ids}")
            if self.spec.token_types and max(encoding.type_ids) > self._most_type:
                found = f"token type {max(encoding.type_ids)} in {describe(texts if self.spec.pair else text)}"
                raise refuse(self.name, found, f"0 to {self._most_type}, the model's token types")

    def _read_ids(self, ids: Array) -> list[list[int]]:
        """Return the ready ids, and behind them the types where the member takes them."""
        rank = len(self.tensor_shape)
        if ids.dtype not in (np.int32, np.int64) or ids.ndim != rank or (rank == 2 and len(ids) != 2):
            raise refuse(self.name, describe(ids), self._allowed)
        ready = np.atleast_2d(ids)
        if not 1 <= ready.shape[1] <= self.spec.max_tokens:
            raise refuse(self.name, f"{ready.shape[1]} token ids", f"1 to {self.spec.max_tokens}")
        values: list[list[int]] = ready.tolist()
        lasts = (("id", self.most_id, f", {self._whose_ids}"), ("type", min(1, self._most_type), ""))
        for line, (what, last, reason) in zip(values, lasts, strict=False):
            outside = [value for value in line if not 0 <= value <= last]
            if outside:
                raise refuse(self.name, f"token {what} {outside[0]}", f"0 to {last}{reason}")
        return values


def _pad(samples: Sequence[Sequence[int]], tokens: int, fill: int) -> NDArray[np.int32]:
    return np.array([[*sample, *[fill] * (tokens - len(sample))] for sample in samples], dtype=np.int32)


def _find_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and behind every text."""
    try:
        encoding = tokenizer.encode("a")
    except Exception:  # tokenizers raises plain Exception: a word outside a vocabulary without "unknown"
        return [], []
    marked = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))
    begin = [id_ for id_, _ in takewhile(lambda token: token[1], marked)]
    end = [id_ for id_, _ in takewhile(lambda token: token[1], reversed(marked[len(begin) :]))]
    return begin, end[::-1]


def _refuse_tokenizer(key: str, spec: TextInputSpec, error: Exception) -> InvalidEnsemble:
    found = f"{quote(spec.tokenizer)}, which tokenizers cannot read ({outline(error)})"
    return InvalidEnsemble(f"{key}.tokenizer: found {found}; allowed: a tokenizer.json")


def _read_tokenizer(key: str, folder: Path, spec: TextInputSpec) -> Tokenizer:
    try:
        with without_panics():
            if spec.tokenizer.startswith(PREFIX):
                tokenizer: Tokenizer = open_tokenizer(find_directory(folder, spec.tokenizer)).backend_tokenizer
            else:
                tokenizer = Tokenizer.from_str(read_file(folder / spec.tokenizer).decode())
    except Exception as error:  # tokenizers raises plain Exception
        raise _refuse_tokenizer(key, spec, error) from error
    special = tokenizer.num_special_tokens_to_add(spec.pair)
    if special >= spec.max_tokens:
        allowed = f"more than the {special} tokens that the tokenizer adds to every {'pair' if spec.pair else 'text'}"
        raise InvalidEnsemble(f"{key}.max_tokens: found {spec.max_tokens}; allowed: {allowed}")
    # The file's own truncation and padding are for its author's purposes; the spec's count here.
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_tokens, direction=spec.truncation_side)
    return tokenizer

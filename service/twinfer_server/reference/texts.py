"""Made-up texts through a directory's own AutoTokenizer and through ours: ids, mask and types have to be the same."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InvalidEnsemble, InvalidInput, quote
from ..inputs.text import TextInput
from ..spec import PREFIX, find_model, open_tokenizer

TEXTS = (
    "The quick brown Fox JUMPS over 13 lazy dogs.", " two spaces  in front,\tand a tab ", "Crème brûlée, ÑANDÚ & Ångström (naïve)",
    "東京タワーは高い。北京 서울", "🙂👩‍👩‍👧 emoji!!!", "3.14159 x 10^-7 = $1,234.56 @user #tag", "don't can't o'clock",
    "a", " ", "\n", "[CLS] inside [SEP] a text </s> <s> <pad> [MASK] <|endoftext|>", "\ufb01 \ufb03 ½ \u0130stanbul ß \u1e9e",
    "under_score camelCase <b>&amp;</b>", "ab\u0301 \u200bzero\u00a0width\ufeff",
)  # fmt: skip
"""Upper and lower case, accents, spaces, scripts, numbers, and what special tokens look like."""
LONG = "A very long text about the weather and the sea, 42 times; "
MORE = 3
"""So many tokens of padding are put behind each text, as a batch does."""


def compare_texts(key: str, input: TextInput, directory: Path) -> str:
    """Compare a text input with the tokenizer that transformers makes of the directory, on made-up texts.

    Returns one line that says what was compared, or why nothing was. Raises InvalidEnsemble that says what differs. `key` is the
    input's path in the ensemble's file.
    """
    spec = input.spec
    own = [directory / "tokenizer.json", find_model(directory) / "tokenizer.json"]
    if not spec.tokenizer.startswith(PREFIX) and (input.folder / spec.tokenizer).resolve() not in own:
        return f"{key}: not compared, {quote(spec.tokenizer)} is not of the model's directory"
    try:
        tokenizer = open_tokenizer(directory)
    except ValueError as error:
        raise InvalidEnsemble(f"{key}: {error}") from None
    tokenizer.truncation_side = spec.truncation_side
    texts: list[tuple[str, ...]] = [(text,) for text in (*TEXTS, LONG * 8, LONG * (1 + spec.max_tokens // 8))]
    if spec.pair:
        texts = [(*text, other) for text, (other,) in zip(texts, [*texts[1:], texts[0]], strict=True)]
    for sample in texts:
        found, expected = _prepare(input, sample), _ask(tokenizer, input, sample)
        if found != expected and found is not None:
            raise InvalidEnsemble(_describe(key, type(tokenizer).__name__, sample, found, expected))
    names = ", ".join(("ids", "mask", "types")[: 1 + spec.mask + spec.token_types])
    return f"{key}: {len(texts)} made-up {'pairs' if spec.pair else 'texts'} have the {names} of {type(tokenizer).__name__}"


def _prepare(input: TextInput, texts: tuple[str, ...]) -> list[list[int]] | None:
    """Let our input prepare a text as for a batch: ids, then mask and types; [] for a refusal, None for no answer."""
    try:
        samples = input.prepare(input.decode(texts))
    except InvalidInput:
        # A text that is longer than the operator allows says nothing.
        return None if len("".join(texts).encode()) > input.max_bytes else []
    staged = []
    for buffer, array in zip(input.buffers, samples, strict=True):
        padding = ((0, 0), (0, MORE)) if buffer.is_ragged else ((0, 0),) * array.ndim
        staged.append(torch.from_numpy(np.pad(array, padding, constant_values=buffer.fill)))
    return [argument[0].tolist() for argument in input.arguments(staged)]


def _ask(tokenizer: Any, input: TextInput, texts: tuple[str, ...]) -> list[list[int]]:
    """Let the library prepare a text as for a batch; [] where it cannot, or finds no token."""
    spec = input.spec
    try:
        answer = tokenizer(
            spec.prompt + texts[0], *texts[1:], truncation=True, max_length=spec.max_tokens, padding=False,
            return_attention_mask=True, return_token_type_ids=spec.token_types,
        )  # fmt: skip
    except Exception:  # tokenizers raises plain Exception: a word outside a vocabulary without "unknown"
        return []
    ids: list[int] = list(answer["input_ids"])
    count = MORE if spec.mask else spec.max_tokens - len(ids)
    padded = [[*ids, *[spec.pad_id] * count]]
    if spec.mask:
        padded.append([*answer["attention_mask"], *[0] * count])
    if spec.token_types:
        padded.append([*answer["token_type_ids"], *[0] * count])
    return padded if ids else []


def _describe(key: str, name: str, texts: tuple[str, ...], found: list[list[int]], expected: list[list[int]]) -> str:
    """Say which of what was made of a text differs, and from where on."""
    names = ("ids", "mask", "types")[: max(len(found), len(expected))]
    lines = zip_longest(names, found, expected, fillvalue=())
    what, ours, theirs = next(line for line in lines if line[1] != line[2])
    differ = (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
    first = max(0, next(differ, min(len(ours), len(theirs))) - 2)
    some = slice(first, first + 8)
    said = f"{quote(' | '.join(texts))} has the {what} {ours[some]} from position {first}, and {theirs[some]}"
    return f"{key}: {said} by the library's {name}; allowed: the same. Leave the input's keys out, and the directory's count"

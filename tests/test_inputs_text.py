"""Text inputs: token ids by the ensemble's tokenizer, cut and padded by the spec's rules."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from twinfer_server.errors import InvalidEnsemble, InvalidInput
from twinfer_server.inputs import InputKind, InputLimits, Staging, make_input
from twinfer_server.spec import TextInputSpec
from twinfer_server.types import RawInput

WORDS = {"[UNK]": 0, "one": 1, "two": 2, "three": 3, "[CLS]": 4, "[SEP]": 5}
TEN_BYTES = InputLimits(max_text_bytes=10)


def save_tokenizer(folder: Path, *, unknown: bool = True, special: bool = False) -> None:
    """Save a tokenizer of whole words whose own truncation and padding would spoil every test."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]") if unknown else models.WordLevel({"one": 0}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    tokenizer.enable_truncation(3 if special else 1)
    tokenizer.enable_padding(length=9, pad_id=3)
    tokenizer.save(str(folder / "tokenizer.json"))


def make(folder: Path, limits: InputLimits | None = None, **keys: object) -> InputKind[Any]:
    document = {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 4, **keys}
    spec = TextInputSpec.model_validate(document, context={"folder": folder})
    return make_input("language", "text", spec, folder, limits or InputLimits())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder)
    return folder


def test_with_a_mask_a_text_is_as_long_as_its_tokens(folder: Path) -> None:
    kind = make(folder, mask=True)
    ids, length = kind.prepare(kind.decode("one two"))
    assert (ids.tolist(), length.tolist()) == ([[1, 2]], [2])
    assert {ids.dtype, length.dtype} == {np.dtype(np.int32)}


def test_with_a_mask_the_flight_is_told_to_pad(folder: Path) -> None:
    kind = make(folder, mask=True, pad_id=3)
    assert kind.staging == (
        Staging("ids", torch.int32, (4,), is_ragged=True, fill=3),
        Staging("length", torch.int32, ()),
    )


def test_the_mask_marks_the_tokens_and_not_the_padding(folder: Path) -> None:
    kind = make(folder, mask=True)
    kind.to(torch.device("cpu"))
    staged = [torch.tensor([[1, 2, 0], [3, 0, 0]], dtype=torch.int32), torch.tensor([2, 1], dtype=torch.int32)]
    ids, mask = kind.arguments(staged)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 0], [3, 0, 0]], [[1, 1, 0], [1, 0, 0]])
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)


def test_without_a_mask_every_text_is_padded_to_max_tokens(folder: Path) -> None:
    kind = make(folder, pad_id=5)
    assert kind.staging == (Staging("ids", torch.int32, (4,), fill=5),)
    [samples] = kind.prepare(kind.decode("one two"))
    [ids] = kind.arguments([torch.from_numpy(samples)])
    assert (ids.tolist(), ids.dtype) == ([[1, 2, 5, 5]], torch.int64)


def test_the_specs_truncation_counts_and_not_the_tokenizers_own(folder: Path) -> None:
    kind = make(folder, mask=True)
    ids, _ = kind.prepare(kind.decode("three three three three two two"))
    assert ids.tolist() == [[3, 3, 3, 3]]


def test_special_tokens_survive_truncation(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, special=True)
    kind = make(tmp_path, mask=True)
    ids, _ = kind.prepare(kind.decode("one two three"))
    assert ids.tolist() == [[4, 1, 2, 5]]


def test_it_tells_callers_what_ready_ids_look_like(folder: Path) -> None:
    kind = make(folder)
    assert (kind.tensor_dtype, kind.tensor_shape, kind.max_tokens) == ("int64", (-1,), 4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ready_ids_stand_in_for_a_text(folder: Path, dtype: type) -> None:
    kind = make(folder, mask=True)
    ids, length = kind.prepare(kind.decode(np.array([5, 0, 1], dtype=dtype)))
    assert (ids.tolist(), length.tolist()) == ([[5, 0, 1]], [3])
    assert ids.dtype == np.int32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(b"one", "found 3 bytes; allowed: a text, or a tensor int32 or int64", id="bytes"),
        pytest.param("", "found the text '', which has no token; allowed: a text with at least one", id="empty"),
        pytest.param(" \n", "which has no token", id="blank"),
        pytest.param("one \ud800", "found a text that is no Unicode", id="half a character"),
        pytest.param("ääääää", "found a text of 12 bytes; allowed: at most 10 bytes of UTF-8", id="too long"),
        pytest.param(np.ones(2), "found a tensor float64 [2]; allowed: a text, or", id="ids of floats"),
        pytest.param(np.ones((1, 2), np.int64), "found a tensor int64 [1, 2]; allowed", id="ids of rank 2"),
        pytest.param(np.ones(0, np.int64), "found 0 token ids; allowed: 1 to 4", id="no ids"),
        pytest.param(np.ones(5, np.int64), "found 5 token ids; allowed: 1 to 4", id="too many ids"),
        pytest.param(np.array([1, -1]), "found token id -1; allowed: 0 to 5", id="negative id"),
        pytest.param(np.array([6]), "found token id 6; allowed: 0 to 5, the tokenizer's", id="id past the end"),
        pytest.param(np.array([2**32 + 1]), "found token id 4294967297", id="id that would wrap round"),
    ],
)
def test_what_is_no_usable_text_is_refused(folder: Path, value: RawInput, message: str) -> None:
    kind = make(folder, TEN_BYTES)
    with pytest.raises(InvalidInput, match=re.escape(f"inputs['text']: {message}") if "found" in message else message):
        kind.prepare(kind.decode(value))


def test_a_word_that_the_tokenizer_cannot_read_is_the_callers_fault(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, unknown=False)
    kind = make(tmp_path)
    with pytest.raises(InvalidInput, match=r"inputs\['text'\]: found the text 'seven' .*UNK.*; allowed: a text that"):
        kind.prepare(kind.decode("seven"))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"model": 1}'], ids=lambda content: repr(content))
def test_a_file_that_is_no_tokenizer_is_refused_naming_the_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidEnsemble, match=r"^members\.language\.input\.text\.tokenizer: found .*; allowed: "):
        make(tmp_path)


def test_max_tokens_must_leave_room_for_a_word_beside_the_special_tokens(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, special=True)
    with pytest.raises(InvalidEnsemble, match=r"text\.max_tokens: found 2; allowed: more than the 2 tokens"):
        make(tmp_path, max_tokens=2)


# --- several texts ----------------------------------------------------------------------------------------------------


def test_several_texts_are_several_samples_as_long_as_the_longest(folder: Path) -> None:
    kind = make(folder, mask=True, pad_id=3, max_samples=3)
    assert (kind.max_samples, kind.is_pair) == (3, False)
    ids, lengths = kind.prepare(kind.decode(("one", "one two one", "two one")))
    assert (ids.tolist(), lengths.tolist()) == ([[1, 3, 3], [1, 2, 1], [2, 1, 3]], [1, 3, 2])


def test_several_texts_without_a_mask_are_padded_to_max_tokens(folder: Path) -> None:
    kind = make(folder, pad_id=3, max_samples=2)
    [ids] = kind.prepare(kind.decode(("one", "one two")))
    assert ids.tolist() == [[1, 3, 3, 3], [1, 2, 3, 3]]


@pytest.mark.parametrize("value", ["two", ("two",), np.array([2])], ids=["a text", "texts", "ready ids"])
def test_an_input_for_several_texts_takes_one_too(folder: Path, value: RawInput) -> None:
    kind = make(folder, mask=True, max_samples=3)
    ids, lengths = kind.prepare(kind.decode(value))
    assert (ids.tolist(), lengths.tolist()) == ([[2]], [1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(("one",) * 4, "found 4 texts; allowed: 1 to 3", id="too many"),
        pytest.param(("one", "", "two"), "found the text '', which has no token", id="an empty one among them"),
        pytest.param(("one", "x" * 11), "found a text of 11 bytes; allowed: at most 10 bytes", id="a long one among them"),
        pytest.param(("one", "\ud800"), "found a text that is no Unicode", id="half a character among them"),
    ],
)
def test_texts_of_which_one_is_no_good_are_refused(folder: Path, value: RawInput, message: str) -> None:
    kind = make(folder, TEN_BYTES, max_samples=3)
    with pytest.raises(InvalidInput, match=re.escape(f"inputs['text']: {message}")):
        kind.prepare(kind.decode(value))


@given(texts=st.lists(st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4))
def test_texts_together_give_what_each_gives_alone(folder: Path, texts: list[str]) -> None:
    kind = make(folder, mask=True, max_samples=4)
    ids, lengths = kind.prepare(kind.decode(tuple(texts)))
    for row, length, text in zip(ids, lengths, texts, strict=True):
        [alone], _ = kind.prepare(kind.decode(text))
        assert row[:length].tolist() == alone.tolist()
        assert not row[length:].any()


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    save_tokenizer(folder, special=True)
    return folder


def test_a_pair_is_one_sample_of_both_texts_with_their_types(pairs: Path) -> None:
    kind = make(pairs, mask=True, pair=True, token_types=True, max_tokens=9)
    assert (kind.max_samples, kind.is_pair, kind.tensor_shape) == (1, True, (2, -1))
    ids, length, types = kind.prepare(kind.decode(("one", "two three")))
    assert (ids.tolist(), length.tolist(), types.tolist()) == ([[4, 1, 5, 2, 3, 5]], [6], [[0, 0, 0, 1, 1, 1]])


def test_the_longer_text_of_a_pair_is_cut_first(pairs: Path) -> None:
    kind = make(pairs, mask=True, pair=True, max_tokens=6)
    ids, _ = kind.prepare(kind.decode(("one", "two three two three")))
    assert ids.tolist() == [[4, 1, 5, 2, 3, 5]]


def test_the_member_gets_ids_mask_and_types(pairs: Path) -> None:
    kind = make(pairs, mask=True, token_types=True)
    kind.to(torch.device("cpu"))
    assert [staging.name for staging in kind.staging if staging.is_ragged] == ["ids", "types"]
    staged = [torch.tensor([[1, 2, 0]]), torch.tensor([2]), torch.tensor([[0, 1, 0]])]
    ids, mask, types = kind.arguments([tensor.to(torch.int32) for tensor in staged])
    assert (ids.tolist(), mask.tolist(), types.tolist()) == ([[1, 2, 0]], [[1, 1, 0]], [[0, 1, 0]])
    assert {ids.dtype, mask.dtype, types.dtype} == {torch.int64}


def test_an_example_is_what_the_member_is_probed_with(pairs: Path) -> None:
    kind = make(pairs, mask=True, token_types=True)
    assert [array.shape for array in kind.example(0, 3)] == [(1, 3), (1,), (1, 3)]


def test_ready_ids_bring_their_types_along(pairs: Path) -> None:
    kind = make(pairs, mask=True, token_types=True)
    ids, length, types = kind.prepare(kind.decode(np.array([[4, 1, 5], [0, 0, 1]])))
    assert (ids.tolist(), length.tolist(), types.tolist()) == ([[4, 1, 5]], [3], [[0, 0, 1]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("one", "found 1 texts; allowed: 2 texts, the first and the second of a pair", id="one text"),
        pytest.param(("one",) * 3, "found 3 texts; allowed: 2 texts", id="three texts"),
        pytest.param(b"one", "found 3 bytes; allowed: two texts, or a tensor int32 or int64 [2, tokens] of", id="bytes"),
        pytest.param(np.array([1, 2]), "found a tensor int64 [2]; allowed: two texts, or", id="ids without types"),
        pytest.param(np.ones((3, 2), np.int64), "found a tensor int64 [3, 2]; allowed: two texts, or", id="a third row"),
        pytest.param(np.array([[1], [2]]), "found token type 2; allowed: 0 to 1", id="a third type"),
    ],
)
def test_what_is_no_pair_is_refused(pairs: Path, value: RawInput, message: str) -> None:
    kind = make(pairs, mask=True, pair=True, token_types=True, max_tokens=9)
    with pytest.raises(InvalidInput, match=re.escape(f"inputs['text']: {message}")):
        kind.prepare(kind.decode(value))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pair": True, "max_samples": 2}, "max_samples: found 2 for pairs; allowed: 1"),
        ({"token_types": True}, "token_types: found true beside mask = false; allowed: with mask = true"),
    ],
    ids=["several pairs", "types without a mask"],
)
def test_keys_that_exclude_each_other_are_refused(pairs: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(pairs, None, **keys)


def test_a_pair_needs_room_for_its_special_tokens(pairs: Path) -> None:
    with pytest.raises(InvalidEnsemble, match=r"max_tokens: found 3; allowed: more than the 3 tokens .* to every pair"):
        make(pairs, pair=True, max_tokens=3)


# --- anything ---------------------------------------------------------------------------------------------------------


@given(text=st.text(alphabet=st.characters()) | st.text(alphabet="one two three\n", max_size=60))
def test_any_text_gives_ids_within_bounds_or_is_refused(folder: Path, text: str) -> None:
    kind = make(folder, mask=True)
    try:
        ids, length = kind.prepare(kind.decode(text))
    except InvalidInput:
        is_unicode = not re.search("[\ud800-\udfff]", text)
        assert not (is_unicode and text.split())
    else:
        assert ids.shape == (1, length[0])
        assert 1 <= length[0] <= 4
        assert set(ids[0].tolist()) <= set(WORDS.values())


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 6), max_size=6))
def test_any_ids_pass_as_they_are_or_are_refused(folder: Path, values: list[int]) -> None:
    kind = make(folder, mask=True)
    is_good = 1 <= len(values) <= 4 and all(0 <= value <= 5 for value in values)
    try:
        ids, _ = kind.prepare(kind.decode(np.array(values, dtype=np.int64)))
    except InvalidInput:
        assert not is_good
    else:
        assert is_good
        assert ids[0].tolist() == values

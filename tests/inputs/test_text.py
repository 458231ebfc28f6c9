"""Text inputs: token ids by the ensemble's tokenizer, cut and padded by the spec's rules."""

import json
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
from twinfer_server.inputs import BufferSpec, InputKind, InputLimits, make_input
from twinfer_server.spec import TextInputSpec
from twinfer_server.types import RawInput

MAX_BYTES = 60
WORDS = {"[UNK]": 0, "one": 1, "two": 2, "three": 3, "[CLS]": 4, "[SEP]": 5}
MASK = {"mask": True}
SEVERAL = {"mask": True, "pad_id": 3, "max_samples": 3}
SPECIAL = {"tokenizer": "special.json"}
TYPES = SPECIAL | {"mask": True, "token_types": True}
PAIR = TYPES | {"pair": True, "max_tokens": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tokenizers of whole words, whose own truncation and padding would spoil every test."""
    folder = tmp_path_factory.mktemp("words")
    for name in ("tokenizer", "special", "strict"):
        model = models.WordLevel({"one": 0}) if name == "strict" else models.WordLevel(WORDS, unk_token="[UNK]")
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if name == "special":
            tokenizer.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
        tokenizer.enable_truncation(3 if name == "special" else 1)
        tokenizer.enable_padding(length=9, pad_id=3)
        tokenizer.save(str(folder / f"{name}.json"))
    return folder


def make(folder: Path, **keys: object) -> InputKind[Any]:
    document = {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 4, **keys}
    spec = TextInputSpec.model_validate(document, context={"folder": folder})
    return make_input("language", "text", spec, folder, InputLimits(max_text_bytes=MAX_BYTES), torch.device("cpu"))


@pytest.mark.parametrize(
    ("keys", "value", "prepared"),
    [
        pytest.param(MASK, "one two", [[[1, 2]], [2]], id="as long as its tokens, with their number"),
        pytest.param({"pad_id": 5}, "one two", [[[1, 2, 5, 5]]], id="padded to max_tokens without a mask"),
        pytest.param(MASK, "three three three three two", [[[3, 3, 3, 3]], [4]], id="cut as the spec says, not the tokenizer"),
        pytest.param(SPECIAL | MASK, "one two three", [[[4, 1, 2, 5]], [4]], id="cut between its special tokens"),
        pytest.param(MASK, np.array([5, 0, 1], np.int32), [[[5, 0, 1]], [3]], id="ready ids int32"),
        pytest.param(MASK, np.array([5, 0, 1]), [[[5, 0, 1]], [3]], id="ready ids int64"),
        pytest.param(SEVERAL, ("one", "one two one", "two one"), [[[1, 3, 3], [1, 2, 1], [2, 1, 3]], [1, 3, 2]], id="several"),
        pytest.param(
            {"pad_id": 3, "max_samples": 2}, ("one", "one two"), [[[1, 3, 3, 3], [1, 2, 3, 3]]], id="several without a mask"
        ),
        pytest.param(SEVERAL, "two", [[[2]], [1]], id="a text where there may be several"),
        pytest.param(SEVERAL, ("two",), [[[2]], [1]], id="one of several"),
        pytest.param(SEVERAL, np.array([2]), [[[2]], [1]], id="ready ids where there may be several texts"),
        pytest.param(PAIR, ("one", "two three"), [[[4, 1, 5, 2, 3, 5]], [6], [[0, 0, 0, 1, 1, 1]]], id="a pair with its types"),
        pytest.param(
            SPECIAL | MASK | {"pair": True, "max_tokens": 6}, ("one", "two three two three"), [[[4, 1, 5, 2, 3, 5]], [6]],
            id="a pair of which the longer text is cut",
        ),
        pytest.param(TYPES, np.array([[4, 1, 5], [0, 0, 1]]), [[[4, 1, 5]], [3], [[0, 0, 1]]], id="ready ids and types"),
    ],
)  # fmt: skip
def test_a_text_becomes_token_ids(folder: Path, keys: dict[str, object], value: RawInput, prepared: list[Any]) -> None:
    kind = make(folder, **keys)
    samples = kind.prepare(kind.decode(value))
    assert [array.tolist() for array in samples] == prepared
    assert {array.dtype for array in samples} == {np.dtype(np.int32)}


def test_it_tells_the_batch_and_the_callers_what_it_takes(folder: Path) -> None:
    assert make(folder, pad_id=5).buffers == (BufferSpec("ids", torch.int32, (4,), fill=5),)
    ids, length = BufferSpec("ids", torch.int32, (4,), is_ragged=True, fill=3), BufferSpec("length", torch.int32, ())
    assert make(folder, mask=True, pad_id=3).buffers == (ids, length)
    types = BufferSpec("types", torch.int32, (4,), is_ragged=True)
    assert make(folder, mask=True, pad_id=3, token_types=True).buffers == (ids, length, types)
    facts = [(kind.tensor_dtype, kind.tensor_shape, kind.max_samples) for kind in (make(folder, **SEVERAL), make(folder, **PAIR))]
    assert facts == [("int64", (-1,), 3), ("int64", (2, -1), 1)]


@pytest.mark.parametrize("keys", [{}, MASK, TYPES], ids=["ids", "ids and mask", "ids, mask and types"])
def test_the_member_gets_int64_tensors_whose_mask_marks_the_tokens(folder: Path, keys: dict[str, object]) -> None:
    staged = [[[1, 2, 0], [3, 0, 0]], [2, 1], [[0, 1, 0], [0, 0, 0]]]
    kind = make(folder, **keys)
    arguments = kind.arguments([torch.tensor(values, dtype=torch.int32) for values in staged[: len(kind.buffers)]])
    expected = [[[1, 2, 0], [3, 0, 0]], [[1, 1, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]]]
    assert [argument.tolist() for argument in arguments] == expected[: len(kind.buffers)]
    assert {argument.dtype for argument in arguments} == {torch.int64}


@pytest.mark.parametrize(("keys", "length"), [({}, 4), (MASK, 3), (TYPES, 3)], ids=["no mask", "mask", "types"])
def test_an_example_has_as_many_tokens_as_asked_where_there_is_a_mask(folder: Path, keys: dict[str, object], length: int) -> None:
    kind = make(folder, **keys)
    shapes = [(1, length), (1,), (1, length)]
    assert [array.shape for array in kind.example(0, 3)] == shapes[: len(kind.buffers)]
    assert kind.example(0, 100)[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        pytest.param({}, b"one", "found 3 bytes; allowed: a text, or a tensor int32 or int64", id="bytes"),
        pytest.param({}, "", "found the text '', which has no token; allowed: a text with at least one", id="empty"),
        pytest.param({}, "one \ud800", "found a text that is no Unicode", id="half a character"),
        pytest.param({}, "ä" * 31, "found a text of 62 bytes; allowed: at most 60 bytes of UTF-8", id="too long"),
        pytest.param({}, ("one", "two"), "found 2 texts; allowed: 1 to 1", id="two texts for one"),
        pytest.param({}, np.ones(2), "found a tensor float64 [2]; allowed: a text, or", id="ids of floats"),
        pytest.param({}, np.ones((1, 2), np.int64), "found a tensor int64 [1, 2]; allowed", id="ids of rank 2"),
        pytest.param({}, np.ones(0, np.int64), "found 0 token ids; allowed: 1 to 4", id="no ids"),
        pytest.param({}, np.ones(5, np.int64), "found 5 token ids; allowed: 1 to 4", id="too many ids"),
        pytest.param({}, np.array([1, -1]), "found token id -1; allowed: 0 to 5", id="negative id"),
        pytest.param({}, np.array([6]), "found token id 6; allowed: 0 to 5, the tokenizer's", id="id past the end"),
        pytest.param({}, np.array([2**32 + 1]), "found token id 4294967297", id="id that would wrap round"),
        pytest.param({"tokenizer": "strict.json"}, "seven", "found the text 'seven' (WordLevel error: Missing [UNK]", id="unknown"),
        pytest.param(SEVERAL, ("one",) * 4, "found 4 texts; allowed: 1 to 3", id="too many texts"),
        pytest.param(SEVERAL, ("one", "", "two"), "found the text '', which has no token", id="an empty one among them"),
        pytest.param(SEVERAL, ("one", "x" * 61), "found a text of 61 bytes; allowed: at most 60 bytes", id="a long one among them"),
        pytest.param(PAIR, "one", "found 1 texts; allowed: 2 texts, the first and the second of a pair", id="half a pair"),
        pytest.param(PAIR, ("one",) * 3, "found 3 texts; allowed: 2 texts", id="three texts for a pair"),
        pytest.param(PAIR, b"one", "found 3 bytes; allowed: two texts, or a tensor int32 or int64 [2, tokens] of", id="no pair"),
        pytest.param(PAIR, np.array([1, 2]), "found a tensor int64 [2]; allowed: two texts, or", id="ids without types"),
        pytest.param(PAIR, np.ones((3, 2), np.int64), "found a tensor int64 [3, 2]; allowed: two texts, or", id="a third line"),
        pytest.param(PAIR, np.array([[1], [2]]), "found token type 2; allowed: 0 to 1", id="a third type"),
    ],
)
def test_what_is_no_usable_text_is_refused(folder: Path, keys: dict[str, object], value: RawInput, message: str) -> None:
    kind = make(folder, **keys)
    with pytest.raises(InvalidInput, match=re.escape(f"inputs['text']: {message}")):
        kind.prepare(kind.decode(value))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"model": 1}'], ids=lambda content: repr(content))
def test_a_file_that_is_no_tokenizer_is_refused_naming_the_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidEnsemble, match=r"^members\.language\.input\.text\.tokenizer: found .*; allowed: "):
        make(tmp_path)


def test_a_token_of_an_id_for_which_no_table_has_room_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"one": 2**31}, unk_token="one")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InvalidEnsemble, match=rf"text\.tokenizer: found a token of the id {2**31}; allowed: at most"):
        make(tmp_path)


def test_a_tokenizer_that_panics_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 4)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InvalidEnsemble, match=r"text\.tokenizer: found .* cannot read \(it panics: "):
        make(tmp_path)
    assert "panicked" in capfd.readouterr().err, "tokenizers tells of it by itself"


@pytest.mark.parametrize(("pair", "special", "what"), [(False, 2, "text"), (True, 3, "pair")], ids=["a text", "a pair"])
def test_max_tokens_must_leave_room_beside_the_special_tokens(folder: Path, pair: bool, special: int, what: str) -> None:
    message = rf"text\.max_tokens: found {special}; allowed: more than the {special} tokens .* to every {what}"
    with pytest.raises(InvalidEnsemble, match=message):
        make(folder, max_tokens=special, pair=pair, **SPECIAL)


def test_keys_that_exclude_each_other_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="max_samples: found 2 for pairs; allowed: 1"):
        make(folder, pair=True, max_samples=2)
    with pytest.raises(ValidationError, match="token_types: found true beside mask = false; allowed: with mask = true"):
        make(folder, token_types=True)


@given(texts=st.lists(st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4))
def test_texts_together_give_what_each_gives_alone(folder: Path, texts: list[str]) -> None:
    kind = make(folder, mask=True, max_samples=4)
    ids, lengths = kind.prepare(kind.decode(tuple(texts)))
    for sample, length, text in zip(ids, lengths, texts, strict=True):
        [alone], _ = kind.prepare(kind.decode(text))
        assert sample[:length].tolist() == alone.tolist()
        assert not sample[length:].any()


@given(text=st.text(alphabet=st.characters(), max_size=15) | st.text(alphabet="one two three\n", max_size=60))
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

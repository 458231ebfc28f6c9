"""Hugging Face directories whose tokenizer or length goes further than the model: such texts are refused, and no others."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.pretrained import MAX_TOKENS, SMALL, WORDS, make_tokenizer, save
from tests.servers import running, write_ensemble
from tests.sources import load_folder
from twinfer import Client, make_request
from twinfer.errors import InvalidInput
from twinfer.v1 import ensemble_pb2
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.inputs import TextInput
from twinfer_server.spec import TextInputSpec, read_spec
from twinfer_server.trust import Trust

ADDED = ["[URL]", "[USER]"]
WIDE = {"initializer_range": 0.5}
"""Weights as small as the library's own would give every text the same answer."""


def save_classifier(directory: Path, kind: str, seed: int = 0, added: list[str] | None = None, **keys: Any) -> Any:
    """Write a tiny classifier of the `kind` Bert or Roberta, whose tokenizer has `added` tokens that the model has not."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SMALL | WIDE | {"num_labels": 3}, vocab_size=len(WORDS), **keys)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(added or [])
    return save(directory, getattr(transformers, f"{kind}ForSequenceClassification")(config), tokenizer)


def write(folder: Path, names: list[str], keys: str = "") -> Path:
    lines = ['name = "texts"', "version = 1", 'task = "classification"']
    for name in names:
        lines += [f"[members.{name}]", f'model = "hf:{name}"', f"[members.{name}.input.text]", 'kind = "text"', keys]
    return write_ensemble(folder, "\n".join([*lines, "[fusion]", 'method = "weighted_mean"']))


def test_texts_with_a_token_that_was_only_added_are_refused_alone_and_switch_nothing_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_classifier(tmp_path / "a", "Bert", 1, ADDED, max_position_embeddings=MAX_TOKENS)
    save_classifier(tmp_path / "b", "Bert", 2, ADDED, max_position_embeddings=MAX_TOKENS)
    with (
        caplog.at_level(logging.WARNING),
        running(write(tmp_path, ["a", "b"]), breaker_failures=3, breaker_window=5) as server,
        Client(server.address, attempts=1) as client,
    ):
        named = [record.getMessage() for record in caplog.records if "'[URL]' (64), '[USER]' (65)" in record.getMessage()]
        assert [line.partition(":")[0] for line in named] == ["members.a.input.text.tokenizer", "members.b.input.text.tokenizer"]
        texts = ["word1 word2", "see [URL]", "word3"] * 6
        asked = [make_request({"text": text}, member_predictions=True) for text in texts]
        for text, outcome in zip(texts, client.infer_batch(asked, timeout=60), strict=True):
            if "[URL]" in text:
                assert isinstance(outcome.error, InvalidInput)
                assert "found the token '[URL]', id 64, in the text 'see [URL]'; allowed: token ids 0 to 63" in outcome.error.text
                continue
            given = make_tokenizer()(text, return_tensors="pt")
            expected = model(given["input_ids"], given["attention_mask"]).logits.softmax(-1)[0]
            prediction = outcome.response.members["a"].prediction
            assert prediction is not None
            found = {scored.index: scored.probability for scored in prediction.classes}
            assert [found[index] for index in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)
        with pytest.raises(InvalidInput, match="found token id 65; allowed: 0 to 63, the model's embeddings"):
            client.infer({"text": np.array([1, 65, 2])}, timeout=60)
        assert {member.breaker_state for member in client.describe().members} == {ensemble_pb2.BREAKER_STATE_CLOSED}


def test_a_roberta_takes_as_many_tokens_as_it_has_positions_behind_the_paddings(tmp_path: Path) -> None:
    save_classifier(tmp_path / "a", "Roberta", max_position_embeddings=MAX_TOKENS, pad_token_id=1, type_vocab_size=1)
    spec = read_spec(write(tmp_path, ["a"])).members["a"].input["text"]
    assert isinstance(spec, TextInputSpec)
    assert spec.max_tokens == MAX_TOKENS - 2
    loaded = load_folder(write(tmp_path, ["a"]), trust=Trust())
    assert loaded.members[0].output_shape == (3,)
    message = rf"^members\.a\.input\.text\.max_tokens: found {MAX_TOKENS}; allowed: at most {MAX_TOKENS - 2}, for so many positions"
    with pytest.raises(InvalidEnsemble, match=message):
        load_folder(write(tmp_path, ["a"], f"max_tokens = {MAX_TOKENS}"), trust=Trust())


def test_a_length_beyond_a_berts_positions_is_refused_by_the_key(tmp_path: Path) -> None:
    save_classifier(tmp_path / "a", "Bert", max_position_embeddings=12)
    with pytest.raises(InvalidEnsemble, match=r"^members\.a\.input\.text\.max_tokens: found 13; allowed: at most 12, for so many"):
        load_folder(write(tmp_path, ["a"], "max_tokens = 13"), trust=Trust())


def test_a_head_that_looks_for_the_end_of_a_text_is_bounded_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(ADDED)
    end = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("", add_special_tokens=True))[-1]
    torch.manual_seed(0)
    library: Any = transformers
    config = library.T5Config(
        vocab_size=len(WORDS), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, num_labels=3, eos_token_id=end,
        pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    save(tmp_path / "m", library.T5ForSequenceClassification(config), tokenizer)
    [kind] = load_folder(write(tmp_path, ["m"])).members[0].inputs
    assert isinstance(kind, TextInput)
    assert kind.most_id == len(WORDS) - 1

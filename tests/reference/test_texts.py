"""Directories of text models as they are published: each answers as its own library does, or is refused by a key's name."""

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.reference.families import FAMILIES, PAIRS, TEXTS, copy_directory, save_family
from tests.servers import write_ensemble
from tests.sources import load_folder
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import Member
from twinfer_server.trust import Trust

TOLERANCE = 1e-5


def load_member(folder: Path, name: str, task: str = "classification", keys: str = "", own: str = "") -> Member:
    """Load an ensemble of the directory alone, with all its checks; `keys` are those of its text, `own` those of the member."""
    method = {"embedding": "concatenation"}.get(task, "weighted_mean")
    write_ensemble(
        folder,
        f'name = "one"\nversion = 1\ntask = "{task}"\n[members.m]\nmodel = "hf:{name}"\n{own}\n[members.m.input.text]\nkind = "text"\n'
        f'{keys}\n[fusion]\nmethod = "{method}"\n[batching]\nmax_batch_size = 4\n',
    )
    (member,) = load_folder(folder, Trust()).members
    return member


def ask(member: Member, texts: Sequence[str | tuple[str, ...]], most: int = 3) -> Tensor:
    """Return what a member computes, of up to `most` texts at a time."""
    (kind,) = member.request_inputs
    found = []
    with torch.inference_mode():
        for first in range(0, len(texts), most):
            samples = [kind.prepare(kind.decode(text)) for text in texts[first : first + most]]
            buffers, bucket = member.buffers[0], member.bucket(samples)
            buffers.write(samples, bucket)
            buffers.copy_in(bucket)
            found.append(member.compute(buffers, bucket)[0][: len(samples)].clone())
    return torch.cat(found)


def ask_library(directory: Path, model: Any, texts: Sequence[str | tuple[str, ...]], max_tokens: int) -> Tensor:
    """Return the logits of each text alone, or the features of a text tower, or the mean of an encoder's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if getattr(model.config, "pad_token_id", 0) in (None, -1):
        model.config.pad_token_id = tokenizer.pad_token_id  # without it the library takes no batches
    compute = getattr(model, "get_text_features", model)
    found = []
    for text in texts:
        parts = (text,) if isinstance(text, str) else text
        given = tokenizer(*parts, truncation=True, max_length=max_tokens, return_tensors="pt")
        takes = inspect.signature(model.forward).parameters
        with torch.inference_mode():
            answer = compute(**{name: value for name, value in given.items() if name in takes})
        found.append(answer.logits if "logits" in answer else answer.get("pooler_output", answer.last_hidden_state.mean(1)))
    return torch.cat(found)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= TOLERANCE * max(1.0, expected.abs().max().item())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directories of all families, and their models."""
    folder = tmp_path_factory.mktemp("published")
    models = {name: save_family(folder / name, family) for name, family in FAMILIES.items()}
    models["t5-small's encoder"] = transformers.T5EncoderModel.from_pretrained(folder / "t5-small's encoder").eval()
    return folder, models


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_the_library_does_or_is_refused_by_name(tmp_path: Path, published: Any, name: str) -> None:
    directories, models = published
    family = FAMILIES[name]
    shutil.copytree(directories / name, tmp_path / "m")
    task = "classification" if family.has_head else "embedding"
    try:
        member = load_member(tmp_path, "m", task, own=family.keys)
    except InvalidEnsemble as error:
        assert family.refused, error
        assert family.refused in str(error)
        return
    assert not family.refused
    max_tokens = member.spec.input["text"].max_tokens
    assert_close(ask(member, TEXTS, family.most), ask_library(tmp_path / "m", models[name], TEXTS, max_tokens))
    if family.has_head:
        member = load_member(tmp_path, "m", task, "pair = true")
        assert_close(ask(member, PAIRS, family.most), ask_library(tmp_path / "m", models[name], PAIRS, max_tokens))

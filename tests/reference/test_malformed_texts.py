"""Damaged configuration files of text models: each still loads, or is refused by the file's name, and nothing else happens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.reference.test_texts import encoder, layout, load_member, published  # noqa: F401  # fixtures
from twinfer_server.errors import InvalidEnsemble

FILES = (
    "config.json", "tokenizer_config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json",
)  # fmt: skip
VALUES = [-1, 0, 10**400, 1e308, float("nan"), "", "\ud800", "../../x", [], [None], {}, {"a": {"b": None}}, True, None]
WHOLE = ["", "{", "[]", "null", "NaN", "1", '"x"', "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "\x00", "{" + '"a":1,' * 3]


def try_load(folder: Path) -> str:
    """Load a damaged directory; return what it is refused with, "" where it loads."""
    try:
        load_member(folder, "m", "embedding")
    except InvalidEnsemble as error:
        return str(error)
    return ""


def damage(document: Any, number: int) -> Any:
    """Put one of the values in the place of one of a document's, by number."""
    part = document[0] if isinstance(document, list) and document else document
    keys = sorted(part)
    key, value = keys[number % len(keys)], VALUES[number // len(keys) % len(VALUES)]
    changed = part | {key: value}
    return [changed, *document[1:]] if isinstance(document, list) else changed


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_by_name_or_served(tmp_path: Path, layout: Path, file: str) -> None:  # noqa: F811
    shutil.copytree(layout, tmp_path / "m")
    path = tmp_path / "m" / file
    whole = path.read_text()
    for content in WHOLE:
        path.write_text(content)
        assert Path(file).name in try_load(tmp_path) or file == "tokenizer.json"
    document = json.loads(whole)
    count = len(document[0] if isinstance(document, list) else document) * len(VALUES)
    for number in range(0, count, 1 + count // 60):
        path.write_text(json.dumps(damage(document, number)))
        assert len(try_load(tmp_path).encode()) < 3000

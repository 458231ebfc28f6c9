"""The keys of Hugging Face directories: the page lists what the code has, and no value of theirs ends in a traceback."""

import re
from pathlib import Path

import pytest

from twinfer_server.spec.keys import FILES, VALUES, check_keys

PAGE = Path(__file__).parents[2] / "docs" / "hugging-face.md"
WRONG = [3, -1, 0.5, "x", [], [1], {}, {"a": {}}, True, float("nan"), float("inf"), 10**400]


def read_table() -> dict[str, list[set[str]]]:
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    texts = rows[2 : 2 + len(FILES)]
    return {name.strip().strip("`"): [set(re.findall("`([^`]+)`", cell)) for cell in cells[:3]] for name, *cells in texts}


def test_the_page_lists_every_key_that_the_code_knows() -> None:
    assert read_table() == {name: [set(keys.read), set(keys.irrelevant), set(keys.refused)] for name, keys in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_value_of_another_kind_is_refused_by_file_and_key(name: str) -> None:
    keys = FILES[name]
    for key, allowed in keys.read.items():
        for value in WRONG:
            if VALUES[allowed](value):
                assert check_keys(name, {key: value}, name)
            else:
                with pytest.raises(ValueError, match=re.escape(f"{name}: {key}: found ")):
                    check_keys(name, {key: value}, name)
    for key in keys.refused:
        with pytest.raises(ValueError, match=re.escape(f"{name}: {key}: found 'x'; allowed: ")):
            check_keys(name, {key: "x"}, name)
    if not keys.has_others:
        with pytest.raises(ValueError, match=re.escape(f"{name}: unheard: found 1; allowed: the keys ")):
            check_keys(name, {"unheard": 1}, name)


@pytest.mark.parametrize("name", FILES)
def test_what_says_nothing_is_left_out(name: str) -> None:
    keys = FILES[name]
    assert check_keys(name, dict.fromkeys([*keys.read, *keys.refused]) | dict.fromkeys(keys.irrelevant, "anything"), name) == {}

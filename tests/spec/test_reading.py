"""The spec: a folder that reads is right in every key; one that does not says which key, what was found, what is right."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twinfer_server.errors import InvalidEnsemble
from twinfer_server.spec import SPEC_FILE, EnsembleSpec, ImageInputSpec, describe_faults, read_labels, read_spec

GOOD = """
name = "pair"
version = 3
task = "classification"
labels = "labels.txt"
[members.vision]
model = "vision.pt2"
[members.vision.input.image]
kind = "image"
size = [6, 8]
mean = [0, 0.5, 1]
[members.language]
model = "python:models:make"
[members.language.input.text]
kind = "text"
tokenizer = "tokenizer.json"
max_tokens = 16
[members.language.input.extra]
kind = "tensor"
dtype = "float32"
shape = [2, 3]
[fusion]
method = "maximum"
weights = { language = 3 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    (folder / "labels.txt").write_text("eins\nzwei\ndreißig\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "loop").symlink_to("loop")
    (folder / "outside.txt").symlink_to("/etc/hostname")
    return folder


def read(folder: Path, document: str | bytes) -> EnsembleSpec:
    (folder / SPEC_FILE).write_bytes(document.encode() if isinstance(document, str) else document)
    return read_spec(folder)


def test_a_good_file_is_read_with_its_defaults(folder: Path) -> None:
    spec = read(folder, GOOD)
    assert (spec.name, spec.version, spec.policy, spec.execution) == ("pair", 3, "require_all", None)
    assert (spec.batching.max_batch_size, spec.batching.max_delay_ms) == (32, 0.5)
    assert read_labels(folder, spec) == ("eins", "zwei", "dreißig")
    image = spec.members["vision"].input["image"]
    assert isinstance(image, ImageInputSpec)
    assert (image.channels, image.resize, image.mean) == (3, "bilinear", [0, 0.5, 1])


def test_inputs_come_in_the_order_of_the_file(folder: Path) -> None:
    walked = [(member, name) for member, name, _ in read(folder, GOOD).walk_inputs()]
    assert walked == [("vision", "image"), ("language", "text"), ("language", "extra")]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("{ language = 3 }", [0.0, 1.0]), ("{ language = 3, vision = 1 }", [0.25, 0.75]), ("{}", [0.5, 0.5])],
    ids=["a member that is not named has none", "they are normalised", "without any all are equal"],
)
def test_weights_come_in_the_members_order_and_sum_to_one(folder: Path, weights: str, expected: list[float]) -> None:
    assert read(folder, GOOD.replace("{ language = 3 }", weights)).member_weights() == expected


def test_an_ensemble_needs_no_labels(folder: Path) -> None:
    assert read_labels(folder, read(folder, GOOD.replace('labels = "labels.txt"\n', ""))) == ()


VISION, TEXT, EXTRA = "members.vision.input.image", "members.language.input.text", "members.language.input.extra"
THIRD = """
[members.third]
model = "x.pt2"
[members.third.input.extra]
kind = "tensor"
dtype = "float32"
shape = [3]
"""


def after(line: str, key: str) -> tuple[str, str]:
    """Give a line of the good file, and the same with another behind it."""
    return line, f"{line}\n{key}"


# (what of the good file becomes what, what the message says: the key's path, what was found, what is allowed)
FAULTS: dict[str, tuple[tuple[str, str], str]] = {
    "version beyond int64": (("version = 3", f"version = {2**63}"), f"version: found {2**63}; allowed: less than"),
    "version of thousands of digits": (
        ("version = 3", f"version = 0x{'f' * 5000}"),
        "version: found int too long to be shown; allowed: less than",
    ),
    "a tensor beyond any message": (
        ("shape = [2, 3]", f"shape = [{2**31}, 3]"),
        f"{EXTRA}.shape: found [{2**31}, 3]; allowed: at most",
    ),
    "version as bool": (("version = 3", "version = true"), "version: found True; allowed: a valid integer"),
    "name with a space": (('"pair"', '"my pair"'), "name: found 'my pair'; allowed: String should match pattern"),
    "no name": (('name = "pair"', ""), "name: found nothing; allowed: a value; the key is required"),
    "unknown task": (('"classification"', '"guessing"'), "task: found 'guessing'; allowed: 'classification', 'multi_label', "),
    "execution that is chosen": (after('name = "pair"', 'execution = "auto"'), "execution: found 'auto'; allowed: 'serial'"),
    "unknown key": (after('name = "pair"', "versoin = 1"), "versoin: found 1; allowed: no key of this name"),
    "long unknown value": (after('name = "pair"', f'x = "{"z" * 999}"'), f"x: found '{'z' * 60}...'; allowed"),
    "missing labels": (("labels.txt", "gone.txt"), "labels: no such file: 'gone.txt'; allowed: a file inside"),
    "labels that leave": (("labels.txt", "../labels.txt"), "labels: the path leaves the ensemble folder: '../labels.txt'"),
    "labels by a link to itself": (("labels.txt", "loop"), "labels: no such file: 'loop'; allowed"),
    "labels with a NUL": (("labels.txt", "a\\u0000"), "labels: no such file: 'a\\x00'; allowed"),
    "member with a bad name": (
        ("[members.language]", '[members."L 1"]\ninput = {}\nmodel = "x"\n[members.language]'),
        "members.'L 1'.[key]: found 'L 1'; allowed: String should match pattern",
    ),
    "unknown kind": (
        ('kind = "image"', 'kind = "crops"'),
        f"{VISION}.kind: found 'crops'; allowed: 'image', 'text', 'tensor'",
    ),
    "no kind": (('kind = "image"\n', ""), f"{VISION}.kind: found nothing; allowed: 'image', 'text', 'tensor', 'output'"),
    "input that is no table": (
        ("[members.language.input.extra]", "[members.language.input]\nextra = 1\n[x]"),
        f"{EXTRA}: found 1; allowed: a table",
    ),
    "mean of one number": (("[0, 0.5, 1]", "[1]"), f"{VISION}.mean: found 1 values; allowed: none, or 3 for color 'rgb'"),
    "std of 0": (("mean = [0, 0.5, 1]", "std = [1, 0, 1]"), f"{VISION}.std.1: found 0; allowed: greater than 0"),
    "one name, two kinds": (
        ("input.extra", "input.image"),
        "members.language.input.image.kind: found 'tensor'; allowed: 'image', as member 'vision' has it, or another name",
    ),
    "one name, two shapes": (
        after("shape = [2, 3]", THIRD),
        "members.third.input.extra: found float32 [3]; allowed: float32 [2, 3], as member 'language' has it, or another name",
    ),
    "a cascade of labels": (
        ('"classification"', '"multi_label"\ncascade = { first = "vision" }'),
        "cascade: found it for task 'multi_label' and 2 members; allowed: for classification, 2 or more",
    ),
    "weight too large to add up": (
        ("language = 3 }", "language = 1e308 }"),
        "fusion.weights.language: found 1e+308; allowed",
    ),
    "weight of no member": (
        ("{ language = 3", "{ third = 3"),
        "fusion.weights: found ['third']; allowed: the members ['lang",
    ),
    "weights all 0": (("language = 3 }", "language = 0 }"), "fusion.weights: found all 0; allowed: at least one above 0"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_refused_naming_key_found_and_allowed(folder: Path, change: tuple[str, str], message: str) -> None:
    assert GOOD.count(change[0]) == 1, "the table must change what it says"
    with pytest.raises(InvalidEnsemble) as refusal:
        read(folder, GOOD.replace(*change))
    assert any(line.startswith(f"{folder / SPEC_FILE}: {message}") for line in str(refusal.value).splitlines()), refusal.value


def test_every_fault_of_a_file_is_told_at_once(folder: Path) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        read(folder, GOOD.replace("version = 3", "version = 0").replace("[6, 8]", "[6, 0]").replace('"pair"', "1"))
    assert len(str(refusal.value).splitlines()) == 3


@pytest.mark.parametrize(
    "document",
    [b"name = ", b"\xff\xfe", b"name = 'a'\nname = 'b'", b"x = " + b"[" * 5000, b"x = " + b"9" * 5000],
    ids=["unfinished", "not UTF-8", "a key twice", "nested without end", "a number without end"],
)
def test_what_is_not_toml_is_refused_naming_the_file(folder: Path, document: bytes) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"{SPEC_FILE}: not TOML: "):
        read(folder, document)


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"no {SPEC_FILE} here; allowed: an ensemble folder"):
        read_spec(tmp_path)


def test_labels_begin_behind_the_mark_that_some_editors_write(folder: Path) -> None:
    (folder / "marked.txt").write_bytes(b"\xef\xbb\xbfeins\r\nzwei\r\n")
    assert read_labels(folder, read(folder, GOOD.replace("labels.txt", "marked.txt"))) == ("eins", "zwei")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param("a\n\nb\n", r", line 2: found nothing; allowed: a label$", id="empty"),
        pytest.param("a\nb\n \n", r", line 3: found nothing; allowed: a label$", id="a space behind the last"),
        pytest.param("a\nb\na\n", r", line 3: found 'a', as in line 1; allowed: another label$", id="twice"),
        pytest.param("dreißig", r" cannot be read: .*; allowed: UTF-8", id="not UTF-8"),
    ],
)
def test_labels_that_name_no_class_or_two_or_are_not_utf_8_are_refused(folder: Path, labels: str, message: str) -> None:
    (folder / "odd.txt").write_text(labels, encoding="latin-1")
    spec = read(folder, GOOD.replace("labels.txt", "odd.txt"))
    with pytest.raises(InvalidEnsemble, match=rf"labels: .*odd\.txt{message}"):
        read_labels(folder, spec)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS | st.sampled_from(["image", "text", "labels.txt"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=5,
)
DOCUMENT: dict[str, Any] = {
    "name": "pair",
    "version": 3,
    "task": "classification",
    "members": {
        "vision": {"model": "vision.pt2", "input": {"image": {"kind": "image", "size": [6, 8], "mean": [0.5] * 3}}},
        "language": {"model": "x.pt2", "input": {"text": {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 9}}},
    },
    "fusion": {"method": "maximum", "weights": {"vision": 1, "language": 3}},
}


@given(data=st.data(), value=VALUES)
def test_whatever_stands_in_one_key_the_file_is_read_or_refused(folder: Path, data: st.DataObject, value: object) -> None:
    document = copy.deepcopy(DOCUMENT)
    table = document
    while True:
        key = data.draw(st.sampled_from(sorted(table)))
        if not isinstance(table[key], dict) or data.draw(st.integers(0, 4)) == 0:
            break
        table = table[key]
    table[key] = value
    try:
        spec = EnsembleSpec.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        faults = list(describe_faults(error))
    else:
        faults = []
        assert math.isclose(sum(spec.member_weights()), 1)
    assert all("; allowed: " in fault and "\n" not in fault for fault in faults)

"""Names: folders, files, classes and inputs of any name that the system allows; and what a draft leaves behind that breaks off."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.graphs import FLOAT, describe_value, move_weights, save_linear, save_nodes
from tests.pretrained import save_vit
from tests.processes import COMMAND
from twinfer_server.draft import CannotDraft, MemberDraft, check_folder, draft_member, draft_towers, folder, write_folder
from twinfer_server.draft.lines import comment, quote_toml
from twinfer_server.draft.member import plain_name
from twinfer_server.spec import NAME_PATTERN, read_spec

NAMES = [
    "with spaces", 'quo"ted', "it's", "new\nline", "back\\slash", "tab\t", "ünï", "日本", "🎉", ".hidden", "-dash", "--flag",
    "#hash", "bell\x07", "del\x7f", "x" * 200, "UPPER", "1st", "$HOME", "`id`", "a;b", "line\u2028separator", "[table]", "a=b",
    "\u202eright to left",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_folders_and_files_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = move_weights(save_linear(tmp_path / name / f"{name}.onnx"), f"{name[:100]}.data".replace("\\", "-"))
    made = tmp_path / "made" / name
    draft = draft_member("one", str(path), "classification")
    write_folder(made, [draft], "")
    assert check_folder(made, [draft]) == ""
    spec = read_spec(made)
    assert (made / spec.members["one"].model).read_bytes() == path.read_bytes()


def test_a_folder_whose_name_is_no_text_is_written_and_named(tmp_path: Path) -> None:
    source = save_linear(tmp_path / os.fsdecode(b"m\xff.onnx"))
    made = tmp_path / os.fsdecode(b"made\xfe")
    command: list[str | bytes] = [*COMMAND, "init", os.fsencode(made), "--member", os.fsencode(f"one={source}"), "--task", "tensor"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert read_spec(made).name == "made"


@pytest.mark.parametrize("name", ["my vit", "ensemble.toml", "labels.txt", "ünï", "-x", "日本"])
def test_towers_and_directories_may_have_any_name(tmp_path: Path, name: str) -> None:
    save_vit(tmp_path / name)
    draft = draft_member("one", f"hf:{tmp_path / name}", "")
    write_folder(tmp_path / "made", [draft], "")
    assert read_spec(tmp_path / "made").members["one"].model == "hf:one"
    assert draft_towers(f"hf:{tmp_path / name}") is None


def save_inputs(path: Path, names: list[str]) -> str:
    """Write a graph that adds up its inputs, which have these names."""
    nodes = [helper.make_node("Sum", names, ["sum"])]
    inputs = [describe_value(name, FLOAT, ["n", 4]) for name in names]
    return str(save_nodes(path, nodes, inputs, [describe_value("sum", FLOAT, ["n", 4])]))


def test_inputs_whose_plain_names_are_one_are_told_apart(tmp_path: Path) -> None:
    names = ["x.1", "x_1", "x:1", "x/1", "X 1", "1", "é", "ж" * 80, "x" * 80, "x" * 79 + "y", 'a"b\n']
    draft = draft_member("one", save_inputs(tmp_path / "m.onnx", names), "embedding")
    assert len(draft.inputs) == len(names)
    write_folder(tmp_path / "made", [draft], "")
    assert check_folder(tmp_path / "made", [draft]) == ""


def test_inputs_that_are_parted_by_their_members_names_stay_apart(tmp_path: Path) -> None:
    sources = {
        "a": save_inputs(tmp_path / "a.onnx", ["x", "b_x"]),
        "b": str(save_linear(tmp_path / "b.onnx", columns=(7,), classes=4)),
    }
    drafts = [draft_member(name, source, "embedding") for name, source in sources.items()]
    write_folder(tmp_path / "made", drafts, "")
    assert check_folder(tmp_path / "made", drafts) == ""
    inputs = {name: list(member.input) for name, member in read_spec(tmp_path / "made").members.items()}
    assert inputs == {"a": ["a_x", "b_x"], "b": ["b_x_2"]}


@settings(max_examples=50)
@given(text=st.text())
def test_any_text_is_quoted_as_toml_has_it(text: str) -> None:
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert tomllib.loads(f"key = {quote_toml(text)}")["key"] == text
    assert tomllib.loads("\n".join([*comment(text), "key = 1"]).encode(errors="replace").decode()) == {"key": 1}


@settings(max_examples=50)
@given(names=st.lists(st.text(max_size=90), max_size=6))
def test_any_names_become_names_that_a_file_may_have(names: list[str]) -> None:
    found: list[str] = []
    for name in names:
        found.append(plain_name(name, "_", "input", found))
    assert len({*found}) == len(names)
    assert all(re.fullmatch(NAME_PATTERN, name) for name in found)


@pytest.mark.parametrize("end", ["", "/", "//"])
@pytest.mark.parametrize("is_relative", [True, False])
def test_a_folder_may_be_relative_or_end_in_a_slash_or_be_there_and_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, is_relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    draft = draft_member("one", str(save_linear(tmp_path / "m.onnx")), "tensor")
    for name in ("new/below", "empty"):
        given = Path((name if is_relative else str(tmp_path / name)) + end)
        write_folder(given, [draft], "")
        assert read_spec(given).name == Path(name).name


def test_the_command_that_is_next_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    made = tmp_path / "it's mine"
    draft = draft_member("one", str(save_linear(tmp_path / "m.onnx")), "tensor")
    write_folder(made, [draft], "")
    [line] = [line for line in (made / "ensemble.toml").read_text().splitlines() if "twinfer serve" in line]
    assert shlex.split(line.partition("`twinfer serve ")[2].removesuffix("`."))[0] == str(made)


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_draft_that_breaks_off_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_there: bool, error: BaseException
) -> None:
    drafts = [
        draft_member(name, str(move_weights(save_linear(tmp_path / f"{name}.onnx"), f"{name}.data")), "tensor") for name in "ab"
    ]
    made = tmp_path / "made" / "below"
    if was_there:
        made.mkdir(parents=True)
    copied = folder._link

    def copy_one(source: str | Path, target: str | Path) -> str:
        if Path(target).name == "b.data":
            raise error
        return copied(source, target)

    monkeypatch.setattr(folder, "_link", copy_one)
    with pytest.raises(CannotDraft if isinstance(error, OSError) else KeyboardInterrupt):
        write_folder(made, drafts, "")
    assert (list(made.iterdir()) == []) if was_there else not (tmp_path / "made").exists()


@pytest.mark.parametrize("place", ["source", "source/new", "file", "file/below", "x" * 300])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path, place: str) -> None:
    save_vit(tmp_path / "source")
    (tmp_path / "file").write_text("")
    draft = draft_member("one", f"hf:{tmp_path / 'source'}", "")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CannotDraft):
        write_folder(tmp_path / place, [draft], "")
    assert sorted(tmp_path.rglob("*")) == before


def test_more_members_than_an_ensemble_may_have_are_refused(tmp_path: Path) -> None:
    source = str(save_linear(tmp_path / "m.onnx"))
    drafts: list[MemberDraft] = [draft_member(f"m{number}", source, "tensor") for number in range(9)]
    with pytest.raises(CannotDraft, match="--member: found 9; allowed: 1 to 8"):
        write_folder(tmp_path / "made", drafts, "")

"""Reading labelled rows: what is read, what every fault says, and how rows are split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfer_server.fit.labels import InvalidRows
from twinfer_server.fit.rows import MIN_ROWS, LabelledRows, deal_folds, read_halves, read_rows
from twinfer_server.spec import EnsembleSpec

LABELS = ("cat", "dog", "big dog")


def make_spec(task: str = "classification") -> EnsembleSpec:
    tokenized = {"kind": "tensor", "dtype": "float32", "shape": [2]}
    image = {"kind": "image", "size": [8, 8]}
    return EnsembleSpec.model_validate(
        {
            "name": "pair",
            "version": 1,
            "task": task,
            "members": {
                "eye": {"model": "python:m:a", "input": {"image": image}},
                "hand": {"model": "python:m:a", "input": {"touch": tokenized}},
            },
            "fusion": {"method": "weighted_mean"},
        }
    )


def read(folder: Path, text: str, task: str = "classification", labels: tuple[str, ...] = LABELS) -> LabelledRows:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(name.encode())
    np.save(folder / "t.npy", np.array([1, 2], dtype=np.float32))
    return read_rows(folder, make_spec(task), labels, 3)


def test_a_row_has_what_its_cells_are_filled_with(tmp_path: Path) -> None:
    rows = read(tmp_path, "image,touch,label,note\na.png,t.npy,dog,x\n,t.npy,cat,\nb.png,,big dog,\n")
    assert [sorted(inputs) for inputs in rows.inputs] == [["image", "touch"], ["touch"], ["image"]]
    assert rows.targets.argmax(1).tolist() == [1, 0, 2]
    assert rows.targets.sum() == 3
    first = rows.read(0, make_spec().input_kinds())
    assert first["image"] == b"a.png"
    assert np.array_equal(np.asarray(first["touch"]), [1, 2])


def test_a_table_as_a_spreadsheet_writes_it_is_read(tmp_path: Path) -> None:
    rows = read(tmp_path, '\ufeffimage,"label"\r\na.png,"big dog"\r\n')
    assert rows.targets.argmax(1).tolist() == [2]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        pytest.param("cat dog", [0, 1], id="spaces between"),
        pytest.param("cat|big dog", [0, 2], id="bars between, where a name has a space"),
        pytest.param("big dog", [2], id="one name with a space"),
        pytest.param("0 2", [0, 2], id="indexes"),
        pytest.param("", [], id="none"),
    ],
)
def test_a_row_may_have_several_labels_where_the_task_says_so(tmp_path: Path, cell: str, expected: list[int]) -> None:
    rows = read(tmp_path, f"image,label\na.png,{cell}\n", "multi_label")
    assert np.flatnonzero(rows.targets[0]).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("image,label\n", "rows.csv: found no row; allowed: at least one", id="no row"),
        pytest.param(
            "picture,label\na.png,dog\n",
            "rows.csv: found the columns ['picture', 'label']; allowed: 'label', and at least one of the inputs ['image', 'touch']",
            id="no column of an input",
        ),
        pytest.param("image\na.png\n", "rows.csv: found the columns ['image']; allowed: 'label'", id="no labels"),
        pytest.param(
            "image,label\na.png,dog\nb.png,cow\n",
            "rows.csv, row 2, column 'label': found 'cow'; allowed: an index of 0 to 2, or one of 'cat', 'dog', 'big dog'",
            id="an unknown label",
        ),
        pytest.param("image,label\na.png,3\n", "row 1, column 'label': found '3'; allowed: an index of 0 to 2", id="too high"),
        pytest.param("image,label\na.png,-1\n", "row 1, column 'label': found '-1'; allowed: an index of 0 to 2", id="below 0"),
        pytest.param("image,label\na.png,\n", "row 1, column 'label': found nothing; allowed: an index", id="no label"),
        pytest.param(
            "image,label\n../a.png,dog\n", "row 1, column 'image': found '../a.png', which leaves the folder; allowed: a file of",
            id="a path that leaves the folder",
        ),
        pytest.param("image,label\n/etc/hosts,dog\n", "found '/etc/hosts', which leaves the folder", id="an absolute path"),
        pytest.param("image,label\nc.png,dog\n", "row 1, column 'image': found 'c.png', which is no file", id="a missing file"),
        pytest.param("image,label\n,dog\n", "row 1, column 'image': found no input at all", id="a row without inputs"),
        pytest.param("image,label\na.png,dog,1\n", "rows.csv, row 1: found 3 cells; allowed: 2", id="a row with too many cells"),
        pytest.param("label,image\ndog\n", "rows.csv, row 1: found 1 cells; allowed: 2", id="a row with too few cells"),
        pytest.param("image,label,label\na.png,dog,cat\n", "found the columns ['image', 'label', 'label']", id="a column twice"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRows) as refusal:
        read(tmp_path, text)
    assert message in str(refusal.value)


DIGITS = ("two", "0", "1")
"""Names that look like indexes, of other classes than theirs."""


@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        (("2", "1", "0"), ["0", "1", "2"], [2, 1, 0]),
        (("1", "2", "3"), ["1", "3", "2"], [0, 2, 1]),
        (DIGITS, ["0", "1", "two", " 1 "], [1, 2, 0, 2]),
        (DIGITS, ["1", "1"], [2, 2]),
        (("0", "1", "b"), ["0", "1", "2"], [0, 1, 2]),
        (LABELS, ["0", "2", "1"], [0, 2, 1]),
        ((), ["2", "0"], [2, 0]),
    ],
)
def test_a_column_of_labels_is_names_or_indexes_throughout(
    tmp_path: Path, labels: tuple[str, ...], cells: list[str], expected: list[int]
) -> None:
    rows = read(tmp_path, "image,label\n" + "".join(f"a.png,{cell}\n" for cell in cells), labels=labels)
    assert rows.targets.argmax(1).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "cells", "place", "found"),
    [
        (LABELS, ["cat", "1"], 2, "'1', which is an index, where row 1 of rows.csv has the name 'cat'"),
        (LABELS, ["1", "2", "cat"], 1, "'1', which is an index, where row 3 of rows.csv has the name 'cat'"),
        (DIGITS, ["0", "1", "2"], 3, "'2', which is an index, where row 1 of rows.csv has the name '0'"),
        (("1", "2", "3"), ["0", "1"], 1, "'0', which is an index, where row 2 of rows.csv has the name '1'"),
        (LABELS, ["1", "01"], 2, "'01'; allowed: an index of 0 to 2"),
        (LABELS, ["1", "1.0"], 2, "'1.0'; allowed: an index of 0 to 2"),
        (LABELS, ["+1"], 1, "'+1'; allowed: an index of 0 to 2"),
        (LABELS, ["\u00b2"], 1, "'\u00b2'; allowed: an index of 0 to 2"),
        (LABELS, ["0", ""], 2, "nothing; allowed: an index of 0 to 2"),
    ],
)
def test_a_cell_that_contradicts_the_others_of_its_column_is_named(
    tmp_path: Path, labels: tuple[str, ...], cells: list[str], place: int, found: str
) -> None:
    with pytest.raises(InvalidRows) as refusal:
        read(tmp_path, "image,label\n" + "".join(f"a.png,{cell}\n" for cell in cells), labels=labels)
    assert f"rows.csv, row {place}, column 'label': found {found}" in str(refusal.value)


@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        (("red car", "red", "car"), ["red car", "red", "car"], [[0], [1], [2]]),
        (("red car", "red", "car"), ["red car|red", "car"], [[0, 1], [2]]),
        (("red car", "red", "car"), ["red car", "car red"], [[1, 2], [1, 2]]),
        (("a|b", "a", "b"), ["a|b", "a"], [[0], [1]]),
        (DIGITS, ["0 1", "", "two"], [[1, 2], [], [0]]),
    ],
)
def test_several_labels_to_a_cell_are_split_alike_in_all_cells(
    tmp_path: Path, labels: tuple[str, ...], cells: list[str], expected: list[list[int]]
) -> None:
    rows = read(tmp_path, "image,label\n" + "".join(f"a.png,{cell}\n" for cell in cells), "multi_label", labels)
    assert [np.flatnonzero(row).tolist() for row in rows.targets] == expected


def test_both_tables_of_a_study_mean_the_same_by_their_labels(tmp_path: Path) -> None:
    for name, label in (("fit", "0"), ("heldout", "two")):
        (tmp_path / name).mkdir()
        read(tmp_path / name, "image,label\n" + f"a.png,{label}\n" * MIN_ROWS, labels=DIGITS)
    halves = read_halves(tmp_path / "fit", tmp_path / "heldout", 0, make_spec(), DIGITS, 3)
    assert [half.targets.argmax(1)[0] for half in halves] == [1, 0]
    read(tmp_path / "heldout", "image,label\n" + "a.png,2\n" * MIN_ROWS, labels=())
    with pytest.raises(InvalidRows, match=r"heldout/rows.csv, row 1, column 'label': found '2', which is an index, where row 1"):
        read_halves(tmp_path / "fit", tmp_path / "heldout", 0, make_spec(), DIGITS, 3)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "data" / "c.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InvalidRows, match="leaves the folder"):
        read(tmp_path / "data", "image,label\nc.png,dog\n")


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRows, match=r"found no rows\.csv; allowed: a folder with one"):
        read_rows(tmp_path, make_spec(), LABELS, 3)


@pytest.mark.parametrize(
    "content", [b"image,label\n\xff,dog\n", b'image,label\n"a.png,dog\n'], ids=["no UTF-8", "a quote that never ends"]
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(InvalidRows, match=r"rows\.csv: cannot be read: "):
        read_rows(tmp_path, make_spec(), LABELS, 3)


def test_a_pickle_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    rows = read(tmp_path, "touch,label\nt.npy,dog\n")
    objects: Any = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "t.npy", objects, allow_pickle=True)
    with pytest.raises(InvalidRows, match=r"row 1, column 'touch': found 't\.npy', which cannot be read: "):
        rows.read(0, make_spec().input_kinds())


def test_an_array_whose_header_is_damaged_is_refused(tmp_path: Path) -> None:
    rows = read(tmp_path, "touch,label\nt.npy,dog\n")
    np.save(tmp_path / "t.npy", np.zeros(3))
    (tmp_path / "t.npy").write_bytes((tmp_path / "t.npy").read_bytes().replace(b"}", b"("))
    with pytest.raises(InvalidRows, match=r"row 1, column 'touch': found 't\.npy', which cannot be read: "):
        rows.read(0, make_spec().input_kinds())


# --- splitting --------------------------------------------------------------------------------------------------------


def split(folder: Path, labels: list[str], seed: int) -> tuple[LabelledRows, LabelledRows]:
    read(folder, "image,label\n" + "".join(f"a.png,{label}\n" for label in labels))
    return read_halves(folder, None, seed, make_spec(), LABELS, 3)


def test_both_halves_have_as_many_rows_of_each_label(tmp_path: Path) -> None:
    labels = ["cat"] * 30 + ["dog"] * 20 + ["big dog"]
    halves = split(tmp_path, labels, seed=1)
    assert sorted([*halves[0].numbers, *halves[1].numbers]) == list(range(1, 52))
    assert [half.targets.sum(0)[:2].tolist() for half in halves] == [[15, 10], [15, 10]]
    for half in halves:
        assert [LABELS[index] for index in half.targets.argmax(1)] == [labels[number - 1] for number in half.numbers]


def test_the_seed_decides_which_row_is_where(tmp_path: Path) -> None:
    once, again, other = (split(tmp_path, ["cat"] * 50, seed)[0].numbers for seed in (1, 1, 2))
    assert once == again != other


def test_too_few_rows_to_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRows, match=f"found 19 rows .* allowed: at least {MIN_ROWS} for each"):
        split(tmp_path, ["cat"] * 39, seed=0)


def test_folds_have_as_many_rows_of_each_label() -> None:
    targets = np.repeat(np.eye(2, dtype=np.bool_), 20, axis=0)
    folds = deal_folds(targets, 10, seed=3)
    assert [[(folds[targets[:, label]] == fold).sum() for fold in range(10)] for label in (0, 1)] == [[2] * 10, [2] * 10]

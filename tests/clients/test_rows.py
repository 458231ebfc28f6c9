"""What a load asks for: rows of a file, or random ones as the ensemble describes its inputs."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.servers import DIGITS
from twinfer import make_request
from twinfer.inputs import DTYPES
from twinfer.load import make_rows, read_rows
from twinfer.v1 import ensemble_pb2, tensor_pb2

SPEC = ensemble_pb2.InputSpec
ENSEMBLE = ensemble_pb2.Ensemble(
    inputs=[
        SPEC(name="image", kind="image", shape=[-1, -1, 1]),
        SPEC(name="text", kind="text", max_tokens=32),
        SPEC(name="numbers", kind="tensor", dtype=tensor_pb2.DATA_TYPE_FP32, shape=[2, -1]),
    ]
)


def test_random_rows_have_every_input_as_it_is_described() -> None:
    for row in make_rows(ENSEMBLE, 5, image_size=37):
        image, text, numbers = row["image"], row["text"], row["numbers"]
        assert isinstance(image, bytes)
        with Image.open(io.BytesIO(image)) as opened:
            assert (opened.format, opened.size, opened.mode) == ("JPEG", (37, 37), "L")
        assert isinstance(text, str)
        assert 1 <= len(text.split()) <= 16
        assert isinstance(numbers, np.ndarray)
        assert (numbers.dtype, numbers.shape) == (np.float32, (2, 16))
        make_request(row)


def test_the_same_seed_makes_the_same_rows_and_another_makes_others() -> None:
    first, again, other = ([make_request(row) for row in make_rows(ENSEMBLE, 4, image_size=16, seed=seed)] for seed in (1, 1, 2))
    assert first == again
    assert len({request.SerializeToString(deterministic=True) for request in first + other}) == 8


def test_inputs_that_take_several_texts_get_several() -> None:
    specs = [
        SPEC(name="pair", kind="text", max_tokens=8, pair=True, max_samples=1),
        SPEC(name="many", kind="text", max_tokens=8, max_samples=100),
        SPEC(name="few", kind="text", max_tokens=1, max_samples=2),
        SPEC(name="one", kind="text", max_tokens=0, max_samples=1),
    ]
    [row] = make_rows(ensemble_pb2.Ensemble(inputs=specs), 1, image_size=8)
    counts = {name: len(value) for name, value in row.items() if isinstance(value, list)}
    assert counts == {"pair": 2, "many": 3, "few": 2}
    assert isinstance(row["one"], str)


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "bfloat16"])
def test_random_tensors_are_of_every_dtype(name: str) -> None:
    spec = SPEC(name="numbers", kind="tensor", dtype=DTYPES[name], shape=[64])
    [row] = make_rows(ensemble_pb2.Ensemble(inputs=[spec]), 1, image_size=8)
    numbers = row["numbers"]
    assert isinstance(numbers, np.ndarray)
    assert (numbers.dtype, numbers.shape) == (np.dtype(name), (64,))
    assert "float" in name or {0, 1} == set(numbers.astype(int).tolist())


def test_rows_are_those_of_the_file_with_the_files_it_names() -> None:
    rows = read_rows(DIGITS / "heldout", ENSEMBLE)
    assert rows == read_rows(DIGITS / "heldout" / "rows.csv", ENSEMBLE)
    assert len(rows) == 599
    assert {*rows[0]} == {"image", "text"}
    assert isinstance(rows[0]["image"], bytes)


def test_an_empty_cell_is_an_input_that_the_row_lacks(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((2, 3), np.float32))
    (tmp_path / "rows.csv").write_text('text,numbers,label\n"a, b",,x\n,one.npy,y\n')
    first, second = read_rows(tmp_path, ENSEMBLE)
    assert first == {"text": "a, b"}
    numbers = second["numbers"]
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == np.ones((2, 3)).tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("label\nx\n", "found the columns ['label']; allowed: at least one of the inputs ['image', 'text', 'numbers']"),
        ("", "found the columns []"),
        ("text\n", "found no row"),
        ("text,image\na,\n,\n", "row 2: found no input at all"),
        ("image\nabsent.png\n", "row 1, column 'image': found 'absent.png', which cannot be read: [Errno 2]"),
        ("numbers\nrows.csv\n", "row 1, column 'numbers': found 'rows.csv', which cannot be read"),
        ("text,image\na\n", None),
    ],
    ids=["no column", "nothing", "no row", "an empty row", "no file", "no array", "a short row"],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, content: str, said: str | None) -> None:
    (tmp_path / "rows.csv").write_text(content)
    if said is None:
        assert read_rows(tmp_path, ENSEMBLE) == [{"text": "a"}]
        return
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - its text is compared below
        read_rows(tmp_path, ENSEMBLE)
    assert said in str(raised.value)

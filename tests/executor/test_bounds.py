"""Bounds: what a model has no embedding for is refused at the door, whatever it is made from, and the rest is served."""

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from tests.models import load_members, register
from tests.servers import write_ensemble
from twinfer_server.errors import InvalidEnsemble, InvalidInput
from twinfer_server.executor import Ensemble
from twinfer_server.types import InferRequest, RawInput

WORDS = 12
ROWS = 10


class Words(nn.Module):
    """Sums embeddings of ids, of positions from `offset` on and of types to two logits."""

    def __init__(self, rows: int = ROWS, positions: int = 100, types: int = 2, offset: int = 0) -> None:
        super().__init__()
        self.ids, self.positions, self.types = nn.Embedding(rows, 2), nn.Embedding(positions, 2), nn.Embedding(types, 2)
        self.offset = offset

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device) + self.offset
        found = self.ids(ids) + self.positions(positions)
        if types is not None:
            found = found + self.types(types)
        return add(found, mask)


def add(found: Tensor, mask: Tensor) -> Tensor:
    """Add up what is found for the tokens of each text."""
    return (found * mask.unsqueeze(-1)).sum(1)


def save_tokenizer(folder: Path, mark: int | None = None) -> None:
    """Write a tokenizer of the words w0, w1, ...; with a `mark` every text begins with that word."""
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if mark is not None:
        name = f"w{mark}"
        template = processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A $B:1", special_tokens=[(name, mark)])
        tokenizer.post_processor = template
    tokenizer.save(str(folder / "tokenizer.json"))


def write(folder: Path, model: nn.Module | str, table: str, mark: int | None = None) -> Path:
    """Write an ensemble of one member that takes one input, `x`, of the `table`."""
    source = model if isinstance(model, str) else register(model.eval())
    folder.mkdir(exist_ok=True)
    save_tokenizer(folder, mark)
    lines = ['name = "words"', "version = 1", 'task = "classification"', "[members.words]", f'model = "{source}"']
    lines += ["[members.words.input.x]", table, "[fusion]", 'method = "weighted_mean"']
    return write_ensemble(folder, "\n".join(lines))


def text(max_tokens: int = 6, **keys: Any) -> str:
    told = {"tokenizer": '"tokenizer.json"', "max_tokens": max_tokens, "mask": "true", "pad_id": 0} | keys
    return "\n".join(['kind = "text"', *(f"{key} = {value}" for key, value in told.items())])


def prepare(ensemble: Ensemble, value: RawInput) -> Any:
    return ensemble.processor.prepare(InferRequest({"x": value}, arrived_at=0.0))


def save_pt2(path: Path, model: nn.Module) -> None:
    dimensions = {0: torch.export.Dim("samples"), 1: torch.export.Dim("tokens", max=64)}
    ids, mask = torch.ones(2, 3, 5, dtype=torch.int64)
    program = torch.export.export(model.eval(), (ids, mask.clone()), dynamic_shapes=(dimensions, dimensions))
    torch.export.save(program, path)


def save_script(path: Path, model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model.eval(), (torch.ones(3, 5, dtype=torch.int64),) * 2), path)


ONNX = """<ir_version: 9, opset_import: ["": 17]>
words (int64[samples, tokens] input_ids, int64[samples, tokens] attention_mask) => (float[samples, two] logits)
<float[ROWS, 2] table = {VALUES}, int64[1] axes = {1}, int64[1] last = {2}> {
    found = Gather(table, input_ids)
    open = Cast<to = 1>(attention_mask)
    column = Unsqueeze(open, last)
    kept = Mul(found, column)
    logits = ReduceSum<keepdims = 0>(kept, axes)
}"""


def save_onnx(path: Path, model: nn.Module) -> None:
    values = ", ".join(str(float(n)) for n in range(2 * ROWS))
    onnx.save(onnx.parser.parse_model(ONNX.replace("ROWS", str(ROWS)).replace("VALUES", values)), path)


FILES: Mapping[str, Callable[[Path, nn.Module], None]] = {"words.pt2": save_pt2, "words.ts": save_script, "words.onnx": save_onnx}


@pytest.mark.parametrize("name", ["python", *FILES])
def test_a_text_with_a_token_that_the_model_has_no_embedding_for_is_refused_and_the_others_are_not(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name != "python":
        FILES[name](tmp_path / name, Words())
    with caplog.at_level(logging.WARNING):
        ensemble = load_members(write(tmp_path, Words() if name == "python" else name, text()))
    warnings = [record.getMessage() for record in caplog.records if "tokenizer" in record.getMessage()]
    assert warnings == [
        "members.words.input.x.tokenizer: the model has embeddings up to the id 9, and beyond are 2 tokens: 'w10' (10), "
        "'w11' (11); a text with one is refused"
    ]
    prepare(ensemble, "w9 w0 w1")
    prepare(ensemble, np.array([0, 9]))
    whose = re.escape("0 to 9, the model's embeddings")
    with pytest.raises(InvalidInput, match=rf"^inputs\['x'\]: found the token 'w10', id 10, in the text 'w1 w10'; .* {whose}$"):
        prepare(ensemble, "w1 w10")
    with pytest.raises(InvalidInput, match=rf"^inputs\['x'\]: found token id 10; allowed: {whose}$"):
        prepare(ensemble, np.array([3, 10]))


def test_a_model_with_more_embeddings_than_the_tokenizer_has_tokens_is_bounded_by_the_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ensemble = load_members(write(tmp_path, Words(rows=64), text()))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    prepare(ensemble, "w11")
    with pytest.raises(InvalidInput, match="found token id 12; allowed: 0 to 11, the tokenizer's vocabulary"):
        prepare(ensemble, np.array([12]))


@pytest.mark.parametrize(
    ("keys", "mark", "message"),
    [
        ({"pad_id": 10}, None, r"^members\.words\.input\.x\.pad_id: found 10; allowed: 0 to 9, the model's embeddings$"),
        ({}, 11, r"^members\.words\.input\.x\.tokenizer: found .* adds a token beyond the id 9 to every text; allowed: 0 to 9"),
        ({"pair": "true"}, 11, r"^members\.words\.input\.x\.tokenizer: found .* adds a token beyond the id 9 to every text"),
    ],
    ids=["the padding", "what begins every text", "what begins every pair"],
)
def test_what_all_texts_have_must_have_an_embedding(tmp_path: Path, keys: dict[str, Any], mark: int | None, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=message):
        load_members(write(tmp_path, Words(), text(**keys), mark))


@pytest.mark.parametrize("mask", ["true", "false"])
@pytest.mark.parametrize("offset", [0, 2])
def test_more_tokens_than_a_model_has_positions_for_are_refused_by_the_key(tmp_path: Path, offset: int, mask: str) -> None:
    class Unmasked(Words):
        def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
            return super().forward(ids, torch.ones_like(ids))

    model = (Words if mask == "true" else Unmasked)(positions=20, offset=offset)
    message = rf"^members\.words\.input\.x\.max_tokens: found 21; allowed: at most {20 - offset}, for so many positions"
    with pytest.raises(InvalidEnsemble, match=message):
        load_members(write(tmp_path, model, text(21, mask=mask)))
    load_members(write(tmp_path, model, text(20 - offset, mask=mask)))


def test_positions_that_are_added_as_they_lie_are_counted_by_trying(tmp_path: Path) -> None:
    class Added(Words):
        def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
            return add(self.ids(ids) + self.positions.weight[: ids.shape[1]], mask)

    with pytest.raises(InvalidEnsemble, match=r"x\.max_tokens: found 21; allowed: at most 20; on more it raises RuntimeError"):
        load_members(write(tmp_path, Added(positions=20), text(21)))


def test_positions_that_are_not_counted_at_the_padding_are_all_counted_of_the_longest_text(tmp_path: Path) -> None:
    class Skipping(Words):
        def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
            is_there = (ids != 1).long()
            positions = is_there.cumsum(1) * is_there + 1
            return add(self.ids(ids) + self.positions(positions), mask)

    with pytest.raises(InvalidEnsemble, match=r"x\.max_tokens: found 19; allowed: at most 18, for so many positions"):
        load_members(write(tmp_path, Skipping(positions=20), text(19, pad_id=1)))
    load_members(write(tmp_path, Skipping(positions=20), text(18, pad_id=1)))


def test_token_types_that_a_model_does_not_have_are_refused(tmp_path: Path) -> None:
    ensemble = load_members(write(tmp_path, Words(types=1), text(token_types="true", pair="true"), mark=1))
    with pytest.raises(InvalidInput, match=r"found token type 1 in 2 texts; allowed: 0 to 0, the model's token types"):
        prepare(ensemble, ("w2", "w3"))
    with pytest.raises(InvalidInput, match=r"found token type 1; allowed: 0 to 0"):
        prepare(ensemble, np.array([[1, 2], [0, 1]]))
    prepare(ensemble, np.array([[1, 2], [0, 0]]))
    prepare(load_members(write(tmp_path, Words(), text(token_types="true", pair="true"), mark=1)), ("w2", "w3"))


class Picks(nn.Module):
    """Looks a tensor of whole numbers up in a table of its own."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, 2))
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(self.table, x.reshape(len(x), -1)).reshape(len(x), -1, 2).sum(1)


PICKS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, int]] = {
    "an embedding": (lambda table, x: nn.functional.embedding(x, table), 0, 9),
    "an embedding of numbers from 1 on": (lambda table, x: nn.functional.embedding(x - 1, table), 1, 10),
    "sums of embeddings": (lambda table, x: nn.functional.embedding_bag(x, table, mode="sum"), 0, 9),
    "rows that are picked": (lambda table, x: table[x], -10, 9),
    "rows that are selected": (lambda table, x: table.index_select(0, x.flatten()), 0, 9),
    "one hot": (lambda table, x: nn.functional.one_hot(x.long(), ROWS).float() @ table, 0, 9),
    "rows of the remainder": (lambda table, x: table[x % ROWS], -(2**31), 2**31 - 1),
    "rows of what is held to the table": (lambda table, x: nn.functional.embedding(x.clamp(0, 9), table), -(2**31), 2**31 - 1),
    "rows of something else": (lambda table, x: (table.sum() + x.float() * 2)[..., None].expand(*x.shape, 2), -(2**31), 2**31 - 1),
}


@pytest.mark.parametrize("shape", ["[1]", "[3]", "[2, 2]"])
@pytest.mark.parametrize(("pick", "least", "most"), PICKS.values(), ids=PICKS)
def test_indices_in_a_tensor_are_bounded_by_the_table(
    tmp_path: Path, pick: Callable[[Tensor, Tensor], Tensor], least: int, most: int, shape: str
) -> None:
    numbers = "min = 1" if least == 1 else ""
    table = f'kind = "tensor"\ndtype = "int32"\nshape = {shape}\n{numbers}'
    ensemble = load_members(write(tmp_path, Picks(pick), table))
    for number in (least, most):
        prepare(ensemble, np.full([int(size) for size in re.findall(r"\d", shape)], number, np.int32))
    for number in (least - 1, most + 1):
        if -(2**31) <= number < 2**31:
            with pytest.raises(
                InvalidInput, match=rf"found the number {number}; allowed: {least} to {most}, the model's embeddings"
            ):
                prepare(ensemble, np.full([int(size) for size in re.findall(r"\d", shape)], number, np.int32))


def test_a_range_that_the_table_does_not_have_is_refused_by_the_key(tmp_path: Path) -> None:
    table = 'kind = "tensor"\ndtype = "int64"\nshape = [2]\nmin = 0\nmax = 10'
    with pytest.raises(
        InvalidEnsemble, match=r"^members\.words\.input\.x\.max: found 10; allowed: 0 to 9, the model's embeddings$"
    ):
        load_members(write(tmp_path, Picks(PICKS["an embedding"][0]), table))


def test_the_ensembles_own_texts_are_held_to_the_bounds_too(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "texts.txt").write_text("w1 w2\nw3 w11\n", encoding="utf-8")
    toml = f"""
        name = "match"
        version = 1
        task = "similarity"
        [members.query]
        model = "{register(nn.Identity())}"
        input.query = {{ kind = "tensor", dtype = "float32", shape = [2] }}
        output.kind = "embedding"
        [members.words]
        model = "{register(Words())}"
        input.x = {{ kind = "text", tokenizer = "tokenizer.json", max_tokens = 6, mask = true, max_samples = 3 }}
        output.kind = "embedding"
        [fusion]
        method = "cosine"
        texts = "texts.txt"
    """
    with pytest.raises(InvalidEnsemble, match=r"^fusion\.texts: line 2: .*found the token 'w11', id 11, in the text 'w3 w11'"):
        load_members(write_ensemble(tmp_path, toml))

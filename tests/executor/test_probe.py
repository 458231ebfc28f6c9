"""What is said of a member that raises or differs: what it was given, what came back, and a remedy only where that is sure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import helper
from torch import Tensor, nn

from tests.graphs import FLOAT, describe_value, save_linear, save_nodes
from tests.models import edit_spec, load_members, register, write_members
from tests.pretrained import MAX_TOKENS, SMALL, WORDS, make_tokenizer, save
from tests.servers import write_ensemble
from tests.sources import load_folder
from twinfer_server.errors import InvalidEnsemble

DYNAMIC = r"Its batch is fixed: export it with a dynamic one \(dynamic_shapes="


class Scripted(nn.Module):
    """Answers by a function of a batch."""

    def __init__(self, answer: Callable[..., object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *arguments: Tensor) -> object:
        return self.answer(*arguments)


def pair_of(x: Tensor) -> Tensor:
    return torch.cat([x, -x], dim=1)


def load_scripted(folder: Path, answer: Callable[..., object]) -> None:
    load_members(write_members(folder, {"odd": Scripted(answer)}))


def write_vector(folder: Path, model: str) -> Path:
    return edit_spec(write_members(folder, {"m": model}), "shape = [1]", "shape = [8]")


@pytest.mark.parametrize("rows", [1, 4])
def test_a_graph_of_a_fixed_batch_is_refused_with_what_it_declares(tmp_path: Path, rows: int) -> None:
    save_linear(tmp_path / "m.onnx", rows=rows)
    raised = "answers 1 sample and raises on twice the same" if rows == 1 else "raised on one sample"
    given = r"float32 \[2, 8\]" if rows == 1 else r"float32 \[1, 8\]"
    declared = "1 sample" if rows == 1 else "4 samples"
    message = rf"the member {raised}: .*it was given {given}\. The model declares {declared}\. {DYNAMIC}"
    with pytest.raises(InvalidEnsemble, match=message):
        load_members(write_vector(tmp_path, "m.onnx"))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_program_of_a_fixed_batch_is_refused_with_what_it_declares(tmp_path: Path, rows: int) -> None:
    torch.export.save(torch.export.export(nn.Linear(8, 2).eval(), (torch.zeros(rows, 8),)), tmp_path / "m.pt2")
    with pytest.raises(InvalidEnsemble, match=rf"The model declares {rows} samples?\. {DYNAMIC}"):
        load_members(write_vector(tmp_path, "m.pt2"))


def test_a_batch_that_is_fixed_inside_a_graph_gets_no_remedy(tmp_path: Path) -> None:
    """The graph says that it takes any number; why it does not, nobody can see from outside."""
    shape = onnx.numpy_helper.from_array(np.array([1, 8]), "shape")
    values = [describe_value(name, FLOAT, ["n", 8]) for name in ("x", "y")]
    save_nodes(tmp_path / "m.onnx", [helper.make_node("Reshape", ["x", "shape"], ["y"])], values[:1], values[1:], [shape])
    with pytest.raises(InvalidEnsemble, match=r"answers 1 sample and raises on twice the same: .*it was given float32 \[2, 8\]$"):
        load_members(write_vector(tmp_path, "m.onnx"))


def take_only_equal_samples(x: Tensor) -> Tensor:
    if len(x.unique()) > 1:
        raise ValueError("not equal")
    return pair_of(x)


def refuse_what_is_positive(x: Tensor) -> Tensor:
    if (x > 0.2).any():
        raise ValueError("too large\nand more")
    return pair_of(x)


class Moody:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 1:
            raise ValueError("not now")
        return pair_of(x)


def answer_at_random(x: Tensor) -> Tensor:
    return pair_of(x) + torch.rand(len(x), 1)


def normalise_with_others(x: Tensor) -> Tensor:
    return pair_of(nn.functional.batch_norm(x, None, None, training=True) if len(x) > 1 else x)


DIAGNOSES: dict[str, tuple[Callable[..., object], str]] = {
    "different ones": (
        take_only_equal_samples,
        r"the member answers twice the same sample and raises on [23] different ones: ValueError: not equal; it was given "
        r"float32 \[[23], 1\]$",
    ),
    "some content": (
        refuse_what_is_positive,
        "(raised on one sample|raises on another, which is alone too): ValueError: too large and more",
    ),
    "now and then": (Moody(), r"raised on one sample, and not when it is tried again: ValueError: not now"),
    "random numbers": (answer_at_random, "the same sample, twice alone, has outputs that differ by .*evaluation mode"),
    "statistics of the batch": (normalise_with_others, "changes by .* with others.*mixes its samples: .*, if it was not"),
    "too few outputs": (lambda x: pair_of(x)[:1], r"2 samples gave an output of shape \[1, 2\]; allowed: \[2, 2\]"),
    "too many outputs": (lambda x: pair_of(x).repeat(2, 1), r"1 sample gave an output of shape \[2, 2\]; allowed: \[1, 2\]"),
    "a batch of one squeezed": (lambda x: pair_of(x).squeeze(0), r"1 sample gave an output of shape \[2\]; allowed: \[1, 2\]"),
    "a number alone": (lambda x: x.sum(), r"1 sample gave an output of shape \[\]; allowed: \[1\]"),
    "nothing": (lambda x: None, "finds no tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "message"), DIAGNOSES.values(), ids=DIAGNOSES)
def test_the_message_says_what_was_sent_and_what_came_back(tmp_path: Path, answer: Callable[..., object], message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"^members\.odd\..*{message}") as refused:
        load_scripted(tmp_path, answer)
    assert "dynamic" not in str(refused.value), "nothing says that its batch is fixed"


def test_a_model_that_gives_back_what_it_was_given_is_served(tmp_path: Path) -> None:
    folder = edit_spec(write_members(tmp_path, {"m": Scripted(lambda x: x)}), "shape = [1]", "shape = [3]")
    assert load_members(folder).members[0].output_shape == (3,)


def test_an_extra_output_of_another_number_is_refused(tmp_path: Path) -> None:
    toml = ['name = "chain"', "version = 1", 'task = "classification"', "[fusion]", 'method = "weighted_mean"']
    first = Scripted(lambda x: (pair_of(x), x[:1]))
    toml += ["[members.one]", f'model = "{register(first)}"', "[members.one.input.x]", 'kind = "tensor"', 'dtype = "float32"']
    toml += ["shape = [1]", "[members.two]", f'model = "{register(Scripted(pair_of))}"', "[members.two.input.y]", 'kind = "output"']
    toml += ['member = "one"', "select = 1"]
    with pytest.raises(
        InvalidEnsemble, match=r"members\.one\.model: 2 samples gave an output of shape \[1, 1\]; allowed: \[2, 1\]"
    ):
        load_members(write_ensemble(tmp_path, "\n".join(toml)))


def write_text(folder: Path, answer: Callable[..., object]) -> Path:
    toml = ['name = "texts"', "version = 1", 'task = "classification"', "[fusion]", 'method = "weighted_mean"']
    toml += ["[members.m]", f'model = "{register(Scripted(answer))}"', "[members.m.input.text]", 'kind = "text"']
    toml += ['tokenizer = "tokenizer.json"', "max_tokens = 32", "mask = true"]
    return write_ensemble(folder, "\n".join(toml), {"tokenizer.json": make_tokenizer().backend_tokenizer.to_str()})


def sum_under_mask(ids: Tensor, mask: Tensor) -> Tensor:
    return pair_of((ids * mask).sum(1, keepdim=True).float())


def need_equal_lengths(ids: Tensor, mask: Tensor) -> Tensor:
    if not mask.sum(1).eq(mask.sum(1)[0]).all():
        raise ValueError("lengths differ")
    return sum_under_mask(ids, mask)


def test_a_model_that_keeps_to_its_mask_is_served(tmp_path: Path) -> None:
    assert load_folder(write_text(tmp_path, sum_under_mask)).members[0].output_shape == (2,)


TEXTS: dict[str, tuple[Callable[..., object], str]] = {
    "it counts padding": (
        lambda ids, mask: pair_of(torch.ones_like(ids).sum(1, keepdim=True).float()),
        "output for a text changes by .* when padding lies behind it; .*does not leave out what its mask calls padding",
    ),
    "it needs equal lengths": (
        need_equal_lengths,
        r"answers each of two texts alone, and raises on both together: ValueError: lengths differ; it was given "
        r"int64 \[2, 32\], int64 \[2, 32\]$",
    ),
}


@pytest.mark.parametrize(("answer", "message"), TEXTS.values(), ids=TEXTS)
def test_texts_of_different_lengths_are_tried(tmp_path: Path, answer: Callable[..., object], message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"^members\.m\.model: .*{message}"):
        load_folder(write_text(tmp_path, answer))


def test_a_coarse_dtype_may_be_off_by_its_own_steps_and_no_more(tmp_path: Path) -> None:
    load_members(write_members(tmp_path, {"m": Rounding(2)}))
    with pytest.raises(InvalidEnsemble, match="mixes its samples"):
        load_members(write_members(tmp_path, {"m": Rounding(20)}))


class Rounding(nn.Module):
    """Is off by so many steps of bfloat16 for every sample beside the first."""

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return pair_of(torch.ones(len(x), 1) + (len(x) - 1) * self.steps * 2**-8)


def test_a_decoder_without_a_padding_token_is_not_said_to_have_a_fixed_batch(tmp_path: Path) -> None:
    sizes = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(WORDS), "max_position_embeddings": MAX_TOKENS}
    model = transformers.Qwen3ForSequenceClassification(transformers.Qwen3Config(**sizes | {"num_labels": 2}))
    model.config.pad_token_id = None
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    save(tmp_path / "decoder", model, tokenizer)
    toml = ['name = "one"', "version = 1", 'task = "classification"', "[fusion]", 'method = "weighted_mean"']
    toml += ["[members.m]", 'model = "hf:decoder"', "[members.m.input.text]", 'kind = "text"']
    with pytest.raises(InvalidEnsemble, match=r"(?i)pad_token") as refused:
        load_folder(write_ensemble(tmp_path, "\n".join(toml)))
    assert "dynamic" not in str(refused.value)

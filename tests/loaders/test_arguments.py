"""Dtypes and layouts: members give what their models take, and answer what ONNX Runtime and torch answer by themselves."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from tests.graphs import save_linear, save_pooled, save_text
from tests.models import register
from tests.pretrained import WORDS, make_tokenizer
from tests.servers import write_ensemble
from tests.sources import load_folder
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import Member
from twinfer_server.types import Array

IMAGE = 'kind = "image"\nsize = [16, 12]'
NORMALISED = f"{IMAGE}\nmean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.3, 0.4]"
TEXT = 'kind = "text"\ntokenizer = "tokenizer.json"\nmax_tokens = 16\nmask = true'
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3), dtype=np.uint8)
PICTURES[0] = np.arange(16 * 12 * 3, dtype=np.uint32).reshape(16, 12, 3) % 256  # every number that a pixel can have


def load_member(folder: Path, model: str, table: str, keys: str = "") -> Member:
    """Load an ensemble of one member, whose one input has this table."""
    head = 'name = "one"\nversion = 1\ntask = "classification"\nfusion.method = "weighted_mean"'
    toml = f'{head}\n[members.m]\nmodel = "{model}"\n{keys}\n[members.m.input.x]\n{table}'
    [member] = load_folder(write_ensemble(folder, toml)).members
    return member


def ask(member: Member, samples: Iterable[Array]) -> Array:
    """Compute samples of one array each together; give the output that counts, float32, and check that each alone has the same."""
    samples = list(samples)
    with torch.inference_mode():
        together, *_ = member.compute_checked([(sample[np.newaxis],) for sample in samples])
        alone = torch.cat([member.compute_checked([(sample[np.newaxis],)])[0] for sample in samples])
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=2e-2, atol=2e-2 if member.model.dtype == torch.bfloat16 else 2e-3)
    return together.numpy()


KINDS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}
RAW = {name: getattr(TensorProto, name.upper()) for name in ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")}


def compute_directly(path: Path, pixels: Array) -> Array:
    """Let ONNX Runtime compute pixels [n, h, w, 3] in the graph's own dtype and layout."""
    session = onnxruntime.InferenceSession(path)
    [node] = session.get_inputs()
    name = {"float": "float32", "double": "float64"}.get(node.type[7:-1], node.type[7:-1])
    given = pixels if node.shape[-1] == 3 else pixels.transpose(0, 3, 1, 2)
    answer: Array = session.run(None, {node.name: np.ascontiguousarray(given).astype(name)})[0].astype(np.float32)
    return answer


@pytest.mark.parametrize("is_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_go_into_floats_normalised_in_the_graphs_own_dtype_and_layout(tmp_path: Path, kind: str, is_last: bool) -> None:
    path = save_pooled(tmp_path / "m.onnx", KINDS[kind], is_last)
    pixels = (PICTURES.astype(np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    expected = compute_directly(path, pixels.astype(np.float32))
    assert ask(load_member(tmp_path, "m.onnx", NORMALISED), PICTURES) == pytest.approx(
        expected, abs=2e-2 if kind == "float16" else 1e-5
    )


@pytest.mark.parametrize("is_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("kind", RAW)
def test_pictures_go_into_whole_numbers_as_they_are(tmp_path: Path, kind: str, is_last: bool) -> None:
    path = save_pooled(tmp_path / "m.onnx", RAW[kind], is_last)
    answer = ask(load_member(tmp_path, "m.onnx", IMAGE), PICTURES)
    assert answer == pytest.approx(compute_directly(path, PICTURES), abs=1e-3)


def test_a_graph_of_bfloat16_gets_and_gives_it(tmp_path: Path) -> None:
    save_linear(tmp_path / "m.onnx", kind=TensorProto.BFLOAT16)
    member = load_member(tmp_path, "m.onnx", 'kind = "tensor"\ndtype = "float32"\nshape = [8]')
    samples = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    rounded = torch.from_numpy(samples).bfloat16().float().numpy()
    save_linear(tmp_path / "plain.onnx")
    expected = onnxruntime.InferenceSession(tmp_path / "plain.onnx").run(None, {"x": rounded})[0]
    assert ask(member, samples) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("takes_types", [False, True])
@pytest.mark.parametrize("kind", ["INT32", "INT64", "FLOAT"])
def test_ids_mask_and_types_of_a_text_are_of_the_graphs_own_dtype(tmp_path: Path, kind: str, takes_types: bool) -> None:
    make_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = save_text(tmp_path / "m.onnx", getattr(TensorProto, kind), len(WORDS), takes_types)
    member = load_member(tmp_path, "m.onnx", TEXT)
    [text] = member.request_inputs
    samples = [text.prepare((line,)) for line in ("word1 word2 word3", "word4")]
    dtype = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64}[kind]
    ids = np.array([[1, 5, 6, 7, 2], [1, 8, 2, 0, 0]], dtype)
    arrays = {"input_ids": ids, "attention_mask": (ids != 0).astype(dtype), "token_type_ids": np.zeros_like(ids)}
    session = onnxruntime.InferenceSession(path)
    expected = session.run(None, {node.name: arrays[node.name] for node in session.get_inputs()})[0]
    with torch.inference_mode():
        assert member.compute_checked(samples)[0].numpy() == pytest.approx(expected, abs=1e-5)


REFUSED = {
    "mean of raw pixels": ("u8.onnx", NORMALISED, r"input\.x\.mean: found \[0\.5.*'pixels' is uint8 \[any, 3, .*allowed: none"),
    "std of raw pixels": ("u8.onnx", f"{IMAGE}\nstd = [0.1, 0.1, 0.1]", r"input\.x\.std: found .*; allowed: none"),
    "another size": ("f32.onnx", 'kind = "image"\nsize = [16, 16]', r"input\.x\.size: found \[16, 16\].*; allowed: \[16, 12\]"),
    "another size, pixels last": ("last.onnx", 'kind = "image"\nsize = [8, 12]', r"input\.x\.size: .*; allowed: \[16, 12\]"),
    "other channels": ("f32.onnx", f'{IMAGE}\ncolor = "gray"', r"input\.x\.color: found 'gray', of 1 channels"),
    "pixels into signed bytes": ("i8.onnx", IMAGE, r"input\.x\.kind: found 'image'.* int8 .*; allowed: floats"),
    "a picture for a row": ("row.onnx", IMAGE, r"input\.x\.kind: found 'image'.*float32 \[any, 8\]; allowed: samples, channels"),
    "large numbers for small": (
        "i32.onnx", 'kind = "tensor"\ndtype = "int64"\nshape = [8]',
        r"input\.x\.dtype: found 'int64', and the model's 'x' is int32 \[any, 8\]; allowed: 'int32'",
    ),
    "fractions for whole numbers": ("i32.onnx", 'kind = "tensor"\ndtype = "float32"\nshape = [8]', "allowed: 'int32'"),
    "ids in bytes": ("bytes.onnx", TEXT, r"input\.x\.kind: found 'text'.*'input_ids' is uint8.*; allowed: ids of int32, int64"),
}  # fmt: skip


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    save_pooled(folder / "u8.onnx", TensorProto.UINT8, is_last=False)
    save_pooled(folder / "i8.onnx", TensorProto.INT8, is_last=False)
    save_pooled(folder / "f32.onnx", TensorProto.FLOAT, is_last=False)
    save_pooled(folder / "last.onnx", TensorProto.FLOAT, is_last=True)
    save_linear(folder / "row.onnx")
    save_linear(folder / "i32.onnx", kind=TensorProto.INT32)
    save_text(folder / "bytes.onnx", TensorProto.UINT8, len(WORDS))
    make_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("model", "table", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_cast_and_no_layout_makes_right_is_refused_by_its_key(graphs: Path, model: str, table: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"^members\.m\..*{message}"):
        load_member(graphs, model, table)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_whole_numbers_go_into_what_holds_them_all(graphs: Path, dtype: str) -> None:
    samples = np.array([[1, 2, 3, 4, 5, 6, 7, 100]] * 2, dtype)
    expected = onnxruntime.InferenceSession(graphs / "i32.onnx").run(None, {"x": samples.astype(np.int32)})[0]
    member = load_member(graphs, "i32.onnx", f'kind = "tensor"\ndtype = "{dtype}"\nshape = [8]')
    assert ask(member, samples) == pytest.approx(expected, rel=1e-5)


class Net(nn.Module):
    def __init__(self, is_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3, 2)
        self.linear = nn.Linear(4, 3)
        self.is_last = is_last

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.is_last else x
        found: Tensor = self.linear(self.convolution(x).relu().mean((2, 3)))
        return found


def save_program(folder: Path, name: str, dtype: torch.dtype, is_last: bool = False) -> nn.Module:
    """Save a net in numbers of this dtype; gives it."""
    model = Net(is_last).eval().to(dtype)
    x = torch.zeros((2, 16, 12, 3) if is_last else (2, 3, 16, 12), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if name.endswith(".pt"):
            torch.jit.save(torch.jit.trace(model, x), folder / name)
        else:
            samples = torch.export.Dim("samples", max=64)
            torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: samples},)), folder / name)
    return model


def compute_net(model: nn.Module, dtype: torch.dtype, is_last: bool = False) -> Array:
    pixels = torch.from_numpy(PICTURES)
    x = (pixels if is_last else pixels.permute(0, 3, 1, 2)).float().div(255).to(dtype)
    with torch.inference_mode():
        found: Array = model(x.contiguous()).float().numpy()
    return found


HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("name", ["m.pt2", "m.pt", "python"])
@pytest.mark.parametrize("half", HALVES)
def test_a_model_that_was_saved_in_halves_computes_in_them_and_its_own_precision_is_no_obstacle(
    tmp_path: Path, half: str, name: str
) -> None:
    dtype = HALVES[half]
    if name == "python":
        model: nn.Module = Net().eval().to(dtype)
        name = register(model)
    else:
        model = save_program(tmp_path, name, dtype)
    expected, tolerance = compute_net(model, dtype), 1e-2 if half == "fp16" else 5e-2
    for keys in ("", f'precision = "{half}"'):
        member = load_member(tmp_path, name, IMAGE, keys)
        assert ask(member, PICTURES) == pytest.approx(expected, abs=tolerance)
        assert member.precision == half
    other = next(one for one in HALVES if one != half)
    saved = str(dtype).removeprefix("torch.")
    message = rf'^members\.m\.precision: found "{other}", and the model was saved in {saved}.*allowed: "{half}" or "fp32"'
    with pytest.raises(InvalidEnsemble, match=message):
        load_member(tmp_path, name, IMAGE, f'precision = "{other}"')


def test_an_exported_program_says_its_layout_and_dtype_too(tmp_path: Path) -> None:
    model = save_program(tmp_path, "last.pt2", torch.float64, is_last=True)
    answer = ask(load_member(tmp_path, "last.pt2", IMAGE), PICTURES)
    assert answer == pytest.approx(compute_net(model, torch.float64, is_last=True), abs=1e-6)
    with pytest.raises(InvalidEnsemble, match=r"input\.x\.size: found \[8, 8\].*; allowed: \[16, 12\]"):
        load_member(tmp_path, "last.pt2", 'kind = "image"\nsize = [8, 8]')
    with pytest.raises(InvalidEnsemble, match=r'precision: found "fp16", and the model was saved in float64.*allowed: "fp32"'):
        load_member(tmp_path, "last.pt2", IMAGE, 'precision = "fp16"')


def test_a_graph_of_halves_takes_its_own_precision_and_no_other(tmp_path: Path) -> None:
    save_pooled(tmp_path / "m.onnx", TensorProto.FLOAT16, is_last=False)
    assert load_member(tmp_path, "m.onnx", IMAGE, 'precision = "fp16"').converted.largest_error == 0
    with pytest.raises(InvalidEnsemble, match=r'precision: found "bf16", and the model was saved in float16'):
        load_member(tmp_path, "m.onnx", IMAGE, 'precision = "bf16"')

"""Precisions and accelerations: answers stay near those of fp32, and what cannot be had is refused with its reason."""

import io
import logging
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.models import register
from tests.servers import running, write_ensemble
from twinfer import Client
from twinfer_server.device import CpuDevice
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import load_ensemble
from twinfer_server.inputs import InputLimits
from twinfer_server.loaders import LoadedModel
from twinfer_server.precision import CalibrationSamples, Converted, convert
from twinfer_server.precision.conversion import measure_error
from twinfer_server.spec import MemberSpec
from twinfer_server.trust import Trust

FEATURES = 16
INPUT = f'kind = "tensor"\ndtype = "float32"\nshape = [{FEATURES}]'
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler, and compiling needs one"
)


class Perceptron(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(FEATURES, 64)
        self.down = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.down(torch.relu(self.up(x)))
        return logits


class Stubborn(Perceptron):
    """Makes float32 between its layers, so that they cannot be cast."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.down(torch.relu(self.up(x)).float())
        return logits


class Failing(Perceptron):
    """Computes in float32 only."""

    def forward(self, x: Tensor) -> Tensor:
        if self.up.weight.dtype != torch.float32:
            raise ValueError("float32 or nothing")
        return super().forward(x)


def make_convolution() -> nn.Module:
    """Make a convolution, normalised, in evaluation mode."""
    torch.manual_seed(0)
    layers = (nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    return nn.Sequential(*layers).eval()


def load(model: object) -> LoadedModel:
    module = model.eval().requires_grad_(False) if isinstance(model, nn.Module) else model
    return LoadedModel(module, "python", 0)  # type: ignore[arg-type]


def load_program(module: nn.Module) -> LoadedModel:
    rows = torch.export.Dim("rows", max=1024)
    program = torch.export.export(module.eval(), (torch.zeros(3, FEATURES),), dynamic_shapes=({0: rows},))
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    graph = torch.export.load(content).module(check_guards=False).requires_grad_(False)
    return LoadedModel(graph.forward, "pt2", 0, "digest", checked=graph)


def make_samples() -> CalibrationSamples:
    x = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(1))
    return CalibrationSamples(
        largest=(x,),
        shapes=((x[:1],), (x[:3],)),
        dynamic=((0,),),
        read=lambda outputs: [outputs.float()] if isinstance(outputs, Tensor) else [],
    )


def convert_to(model: LoadedModel, **keys: object) -> Converted:
    """Convert a model as the keys of its member say."""
    document = {"model": "x.pt2", "input": {"x": {"kind": "tensor", "dtype": "float32", "shape": [FEATURES]}}} | keys
    samples = make_samples()  # staging buffers are not made in inference mode either
    with torch.inference_mode():
        return convert(MemberSpec.model_validate(document), model, samples, "members.x")


@pytest.mark.parametrize("module", [Perceptron(), Stubborn(), make_convolution()], ids=lambda module: type(module).__name__)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.003)])
def test_half_precisions_answer_nearly_as_fp32_does(module: nn.Module, precision: str, tolerance: float) -> None:
    model, x = load(module), make_samples().largest[0]
    with torch.inference_mode():
        before = module(x).clone()
        converted = convert_to(model, precision=precision)
        assert torch.equal(module(x), before), "the loaded model has changed"
        difference = (converted.model.module(x).float() - before).abs().max() / before.abs().max()  # type: ignore[attr-defined]
    assert converted.largest_error == pytest.approx(difference.item())
    assert 0 < converted.largest_error < tolerance


@pytest.mark.parametrize("precision", ["int8_weight_only", "int8_dynamic"])
def test_quantised_layers_answer_nearly_as_fp32_does_and_are_smaller(precision: str) -> None:
    pytest.importorskip("torchao", reason="the extra `quantize` is not installed")
    quantised, cast = (convert_to(load(Perceptron()), precision=name) for name in (precision, "bf16"))
    assert 0 < quantised.largest_error < 0.05
    assert quantised.model.parameter_bytes < cast.model.parameter_bytes


@pytest.mark.parametrize("module", [Perceptron(), make_convolution()], ids=lambda module: type(module).__name__)
def test_exported_programs_are_cast_whatever_dtypes_they_name(module: nn.Module) -> None:
    assert 0 < convert_to(load_program(module), precision="bf16").largest_error < 0.02


@pytest.mark.parametrize(
    ("keys", "model", "reason"),
    [
        ({"precision": "tf32"}, load(Perceptron()), 'precision: found "tf32", refused: TF32 products need .* allowed: "fp32"'),
        ({"precision": "fp8"}, load(Perceptron()), "precision: .*FP8 products need an NVIDIA GPU"),
        ({"precision": "int8_dynamic"}, load(nn.Identity()), "precision: .*it has no nn.Linear layers"),
        ({"precision": "int8_dynamic"}, load_program(Perceptron()), "precision: .*its layers are gone"),
        ({"precision": "bf16"}, load(lambda x: x), "precision: .*the loader 'python' makes no nn.Module"),
        ({"precision": "bf16"}, load(Failing()), "precision: .*float32 or nothing"),
        ({"acceleration": "compile"}, load(lambda x: x), "acceleration: .*makes no nn.Module"),
        ({"acceleration": "tensorrt"}, load(Perceptron()), "acceleration: .*TensorRT computes on .* allowed: \"eager\""),
        ({"precision": "bf16", "tolerance": 1e-6}, load(Perceptron()), "tolerance: found 1e-06, but bf16 eager is off by"),
    ],
    ids=[
        "tf32 on a CPU", "fp8 on a CPU", "int8 without layers", "int8 of a program", "a callable cast", "a module that raises",
        "a callable compiled", "tensorrt on a CPU", "bf16 outside the tolerance",
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_no_ensemble(keys: dict[str, object], model: LoadedModel, reason: str) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"^members\.x\.{reason}"):
        convert_to(model, **keys)


@pytest.mark.parametrize("key", ["precision", "acceleration"])
def test_a_name_that_there_is_not_is_refused_with_those_that_there_are(key: str) -> None:
    with pytest.raises(ValidationError, match=r"Input should be '(fp32|eager)'"):
        convert_to(load(Perceptron()), **{key: "auto"})


def test_torchscript_is_not_compiled_and_a_missing_compiler_is_refused_with_the_remedy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config

        script = torch.jit.trace(Perceptron().eval(), torch.zeros(2, FEATURES))
    with pytest.raises(InvalidEnsemble, match=r"acceleration: .*does not look into TorchScript"):
        convert_to(load(script), acceleration="compile")
    refusal = pytest.raises(InvalidEnsemble, match=r"needs a C\+\+ compiler and none is found; install one")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), refusal:
        convert_to(load(Perceptron()), acceleration="compile")


@needs_compiler
def test_compiled_code_answers_as_fp32_does_at_every_size_in_every_thread() -> None:
    model = load(Perceptron())
    converted = convert_to(model, acceleration="compile")
    assert converted.largest_error < 1e-5

    def compute() -> float:
        torch.set_num_threads(1)
        batches = [torch.randn(samples, FEATURES) for samples in (1, 2, 5, 8, 16)]
        with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
            pairs: list[Any] = [(model.module(x), converted.model.module(x)) for x in batches]
        return max(float((plain - compiled).abs().max()) for plain, compiled in pairs)

    with ThreadPoolExecutor(1) as other:
        assert other.submit(compute).result() < 1e-5


def test_casting_halves_the_size_and_the_comparison_with_fp32_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    module = Perceptron()
    with caplog.at_level(logging.INFO, "twinfer_server.precision"):
        converted = convert_to(load(module), precision="bf16", tolerance=0.1)
    assert converted.model.parameter_bytes * 2 == sum(parameter.nbytes for parameter in module.parameters())
    assert "members.x computes in bf16 eager, off by" in caplog.text


def test_the_error_is_measured_against_the_largest_output() -> None:
    expected = torch.tensor([[1.0, -4.0], [2.0, 1.0]])
    off = expected + torch.tensor([[0.0, 0.0], [-0.5, 0.6]])
    assert measure_error([expected], [off]) == pytest.approx(0.6 / 4)
    assert measure_error([expected, expected], [expected, off]) == pytest.approx(0.6 / 4)
    for broken in (torch.full((2, 2), torch.nan), torch.zeros(2, 3)):
        assert measure_error([expected], [broken]) == float("inf")


def write_members(folder: Path, model: nn.Module, *keys: str) -> Path:
    """Write an ensemble that has the model once for each of `keys`."""
    lines = ['name = "converted"', "version = 1", 'task = "classification"']
    for number, key in enumerate(keys):
        lines += [f"[members.m{number}]", f'model = "{register(model)}"', key, f"[members.m{number}.input.x]", INPUT]
    return write_ensemble(folder, "\n".join([*lines, "[fusion]", 'method = "weighted_mean"', "[batching]", "max_batch_size = 4"]))


def test_members_in_bf16_and_fp32_are_served_side_by_side_and_described(tmp_path: Path) -> None:
    x = np.linspace(-2, 2, FEATURES, dtype=np.float32)
    with torch.inference_mode():
        expected = torch.softmax(Perceptron()(torch.from_numpy(x)[None])[0], dim=0).numpy()
    folder = write_members(tmp_path, Perceptron(), 'precision = "bf16"', "")
    with running(folder, trust_code=True) as server, Client(server.address) as client:
        classes = client.infer({"x": x}, top_k=4).prediction.classes
        first, second = client.describe().members
    assert all(abs(found.probability - expected[found.index]) < 0.01 for found in classes)
    assert (first.precision, first.acceleration) == ("bf16", "eager")
    assert 0 < first.largest_error < 0.02
    assert (second.precision, second.acceleration, second.largest_error) == ("fp32", "eager", 0)


def test_members_that_are_cast_share_what_they_have_alike(tmp_path: Path) -> None:
    # A convolution of one pixel, whose weights look alike in both layouts.
    pointwise = nn.Sequential(nn.Unflatten(1, (FEATURES, 1, 1)), nn.Conv2d(FEATURES, 256, 1), nn.Flatten())
    folder = write_members(tmp_path, pointwise, *['precision = "bf16"'] * 2)
    one, two = load_ensemble(folder, CpuDevice(streams=1), Trust(runs_any_code=True), InputLimits()).members
    assert (one.shared_bytes, two.shared_bytes) == (0, FEATURES * 256 * 2)

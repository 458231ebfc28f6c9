"""Precisions and accelerations: answers stay within the tolerance, and what cannot be had is refused with its reason."""

import io
import shutil
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models import register
from tests.servers import running, write_ensemble
from twinfer import Client
from twinfer_server.device import CpuDevice
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import Ensemble, load_ensemble
from twinfer_server.inputs import InputLimits
from twinfer_server.loaders import LoadedModel
from twinfer_server.spec import MemberSpec
from twinfer_server.trust import Trust
from twinfer_server.tuning import Choice, ProbeSamples, Refused, Tuner
from twinfer_server.tuning.agreement import measure_agreement
from twinfer_server.tuning.pace import hold_share

FEATURES = 16
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler, and compiling needs one"
)


class Perceptron(nn.Module):
    """Two layers, and a float32 of its own making between them, which casting has to get past where it can."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(FEATURES, 64)
        self.down = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.down(torch.relu(self.up(x)))
        return logits


class Stubborn(Perceptron):
    """Makes float32 in its midst, so that its layers cannot be cast."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.down(torch.relu(self.up(x)).float())
        return logits


class Convolution(nn.Module):
    """A convolution, normalised, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)).eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x.view(-1, 1, 4, 4))
        return logits


class Holder(Perceptron):
    """Keeps every other thread from running Python while it computes."""

    def forward(self, x: Tensor) -> Tensor:
        began = time.perf_counter()
        pattern = "a" * 26
        while time.perf_counter() - began < 0.02:
            # One call into C, which never lets go of the interpreter.
            hash(pattern * 20_000)
        return super().forward(x)


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


def make_samples() -> ProbeSamples:
    x = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(1))
    return ProbeSamples(
        paced={1: (x[:1],), 8: (x,)},
        shapes=((x[:1],), (x[:3],)),
        growing=((0,),),
        read=lambda outputs: [outputs.float()] if isinstance(outputs, Tensor) else [],
    )


def make_spec(**keys: object) -> MemberSpec:
    document = {"model": "x.pt2", "input": {"x": {"kind": "tensor", "dtype": "float32", "shape": [FEATURES]}}} | keys
    return MemberSpec.model_validate(document)


@pytest.fixture
def tuner() -> Tuner:
    return Tuner(CpuDevice(lanes=1))


@pytest.mark.parametrize("module", [Perceptron(), Stubborn(), Convolution()], ids=lambda module: type(module).__name__)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.003)])
def test_half_precisions_answer_nearly_as_fp32_does(tuner: Tuner, module: nn.Module, precision: str, tolerance: float) -> None:
    model, samples = load(module), make_samples()
    with torch.inference_mode():
        before = samples.compute(model.module, 8)[0].clone()
        trial = tuner.try_out(Choice(precision), make_spec(), model, samples)
        assert torch.equal(samples.compute(model.module, 8)[0], before), "the loaded model has changed"
    assert 0 < trial.agreement.largest_error < tolerance
    assert trial.agreement.cosine > 0.99


@pytest.mark.parametrize("precision", ["int8_weight_only", "int8_dynamic"])
def test_quantised_layers_answer_nearly_as_fp32_does_and_are_smaller(tuner: Tuner, precision: str) -> None:
    pytest.importorskip("torchao", reason="the extra `quantize` is not installed")
    model = load(Perceptron())
    with torch.inference_mode():
        trial = tuner.try_out(Choice(precision), make_spec(), model, make_samples())
        whole = tuner.try_out(Choice("bf16"), make_spec(), model, make_samples())
    assert 0 < trial.agreement.largest_error < 0.05
    assert trial.model.parameter_bytes < whole.model.parameter_bytes


def test_casting_halves_the_size(tuner: Tuner) -> None:
    module = Perceptron()
    with torch.inference_mode():
        trial = tuner.try_out(Choice("bf16"), make_spec(), load(module), make_samples())
    assert trial.model.parameter_bytes * 2 == sum(parameter.nbytes for parameter in module.parameters())


@pytest.mark.parametrize("module", [Perceptron(), Convolution()], ids=lambda module: type(module).__name__)
def test_exported_programs_are_cast_whatever_dtypes_they_name(tuner: Tuner, module: nn.Module) -> None:
    with torch.inference_mode():
        trial = tuner.try_out(Choice("bf16"), make_spec(), load_program(module), make_samples())
    assert 0 < trial.agreement.largest_error < 0.02


@pytest.mark.parametrize(
    ("choice", "model", "reason"),
    [
        (Choice("tf32"), load(Perceptron()), "TF32 is a kind of product that NVIDIA GPUs have"),
        (Choice("fp8"), load(Perceptron()), "FP8 products need an NVIDIA GPU"),
        (Choice("int8_dynamic"), load(nn.Identity()), "it has no nn.Linear layers"),
        (Choice("int8_dynamic"), load_program(Perceptron()), "its layers are gone"),
        (Choice("bf16"), load(lambda x: x), "is no nn.Module"),
        (Choice("fp32", "tensorrt"), load(Perceptron()), "TensorRT computes on NVIDIA GPUs"),
    ],
    ids=["tf32 on a CPU", "fp8 on a CPU", "int8 without layers", "int8 of a program", "a callable", "tensorrt on a CPU"],
)
def test_what_cannot_be_had_is_refused_with_the_reason(tuner: Tuner, choice: Choice, model: LoadedModel, reason: str) -> None:
    with torch.inference_mode(), pytest.raises(Refused, match=reason):
        tuner.try_out(choice, make_spec(), model, make_samples())


def test_torchscript_is_not_compiled(tuner: Tuner) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(Perceptron().eval(), torch.zeros(2, FEATURES))
    with torch.inference_mode(), pytest.raises(Refused, match="does not look into TorchScript"):
        tuner.try_out(Choice("fp32", "compile"), make_spec(), load(script), make_samples())


def test_a_missing_compiler_is_refused_with_the_remedy(tuner: Tuner) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config
    refusal = pytest.raises(Refused, match=r"needs a C\+\+ compiler and none is found; install one")
    with torch.inference_mode(), config.patch({"cpp.cxx": ("no-such-compiler",)}), refusal:
        tuner.try_out(Choice("fp32", "compile"), make_spec(), load(Perceptron()), make_samples())


@needs_compiler
def test_compiled_code_answers_as_fp32_does_at_every_size_in_every_thread(tmp_path: Path) -> None:
    model, samples = load(Perceptron()), make_samples()
    with torch.inference_mode():
        trial = Tuner(CpuDevice(lanes=1), tmp_path).try_out(Choice("fp32", "compile"), make_spec(), model, samples)
    assert trial.agreement.largest_error < 1e-5
    assert any((tmp_path / "compiled").iterdir()), "nothing was kept for the next start"
    errors: list[float] = []

    def compute() -> None:
        torch.set_num_threads(1)
        batches = [torch.randn(rows, FEATURES) for rows in (1, 2, 5, 8, 16)]
        with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
            for x in batches:
                outputs = [called(x) for called in (model.module, trial.model.module)]
                errors.append((outputs[0] - outputs[1]).abs().max().item())  # type: ignore[operator]

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert len(errors) == 5
    assert max(errors) < 1e-5


@pytest.mark.parametrize("tolerance", [1e-7, 1e-3, 0.1])
def test_auto_never_leaves_the_tolerance(tuner: Tuner, tolerance: float) -> None:
    spec = make_spec(precision="auto", tolerance=tolerance)
    with torch.inference_mode():
        tuned = tuner.tune("members.x", spec, load(Perceptron()), make_samples())
    assert tuned.largest_error <= tolerance
    named = {*tuned.refused, str(tuned.choice)}
    assert {"bf16 eager", "int8_dynamic eager", "int8_weight_only eager"} <= named, "something was neither taken nor refused"
    if tolerance == 1e-7:
        assert tuned.choice == Choice()
        assert "the tolerance is 1e-07" in tuned.refused["bf16 eager"]


def test_a_precision_outside_the_declared_tolerance_is_no_ensemble(tuner: Tuner) -> None:
    spec = make_spec(precision="bf16", tolerance=1e-6)
    with (
        torch.inference_mode(),
        pytest.raises(InvalidEnsemble, match=r"^members.x.tolerance: found 1e-06, but bf16 eager is off by"),
    ):
        tuner.tune("members.x", spec, load(Perceptron()), make_samples())


def test_what_the_file_names_and_the_device_lacks_is_no_ensemble(tuner: Tuner) -> None:
    with torch.inference_mode(), pytest.raises(InvalidEnsemble, match=r'^members.x: found tf32 eager, refused: TF32 .*"auto"$'):
        tuner.tune("members.x", make_spec(precision="tf32"), load(Perceptron()), make_samples())


def test_a_choice_is_kept_for_the_next_start(tmp_path: Path) -> None:
    spec, model = make_spec(precision="auto", tolerance=0.5), load_program(Perceptron())
    tuner = Tuner(CpuDevice(lanes=1), tmp_path)
    with torch.inference_mode():
        first, second = (tuner.tune("members.x", spec, model, make_samples()) for _ in range(2))
    [path] = tmp_path.glob("choice-*.json")
    assert (first.choice, first.speed_up, dict(first.refused)) == (second.choice, second.speed_up, dict(second.refused))
    path.write_text("{")
    with torch.inference_mode():
        tuner.tune("members.x", spec, model, make_samples())
    assert len(path.read_text()) > 10


def test_a_call_that_keeps_the_interpreter_is_told_from_one_that_lets_go() -> None:
    matrix = torch.randn(1200, 1200)
    assert hold_share(lambda: time.sleep(0.05)) < 0.5
    assert hold_share(lambda: matrix @ matrix) < hold_share(lambda: hash("a" * 2**26)) > 0.5


def test_agreement_is_measured_against_the_largest_output() -> None:
    reference = torch.tensor([[1.0, -4.0], [2.0, 1.0]])
    agreement = measure_agreement([reference], [reference + torch.tensor([[0.0, 0.0], [-0.5, 0.6]])], has_classes=True)
    assert agreement.largest_error == pytest.approx(0.6 / 4)
    assert agreement.top_1 == 0.5
    broken = measure_agreement([reference], [torch.full((2, 2), torch.nan)], has_classes=False)
    assert broken.largest_error == float("inf")
    assert broken.top_1 is None


def write_served(folder: Path, keys: str) -> Path:
    source = register(Perceptron())
    return write_ensemble(
        folder,
        f'name = "tuned"\nversion = 1\ntask = "classification"\n[members.x]\nmodel = "{source}"\n{keys}\n[members.x.input.x]\n'
        f'kind = "tensor"\ndtype = "float32"\nshape = [{FEATURES}]\n[fusion]\nmethod = "weighted_mean"\n[batching]\nmax_rows = 4\n',
    )


def load_folder(folder: Path) -> Ensemble:
    return load_ensemble(folder, CpuDevice(lanes=1), Trust(runs_any_code=True), InputLimits())


def test_a_member_in_bf16_is_served_and_described(tmp_path: Path) -> None:
    x = np.linspace(-2, 2, FEATURES, dtype=np.float32)
    with torch.inference_mode():
        expected = torch.softmax(Perceptron()(torch.from_numpy(x)[None])[0], dim=0).numpy()
    with running(write_served(tmp_path, 'precision = "bf16"'), trust_code=True) as server, Client(server.address) as client:
        classes = client.infer({"x": x}, top_k=4).prediction.classes
        [member] = client.describe().members
    assert all(abs(found.probability - expected[found.index]) < 0.01 for found in classes)
    assert (member.precision, member.acceleration) == ("bf16", "eager")
    assert 0 < member.largest_error < 0.02


def test_a_member_is_fp32_and_eager_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    [member] = load_folder(write_served(tmp_path, "")).members
    assert member.tuned.choice == Choice()
    assert isinstance(member.model.module, Perceptron)


class Pointwise(nn.Module):
    """A convolution of one pixel, whose weights look alike in both layouts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(FEATURES, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.convolution(x[:, :, None, None]).flatten(1)
        return logits


def test_members_that_are_cast_share_what_they_have_alike(tmp_path: Path) -> None:
    lines = ['name = "twins"', "version = 1", 'task = "classification"']
    for name in ("one", "two"):
        lines += [f"[members.{name}]", f'model = "{register(Pointwise())}"', 'precision = "bf16"', f"[members.{name}.input.x]"]
        lines += ['kind = "tensor"', 'dtype = "float32"', f"shape = [{FEATURES}]"]
    folder = write_ensemble(
        tmp_path, "\n".join([*lines, "[fusion]", 'method = "weighted_mean"', "[batching]", "max_batch_size = 4"])
    )
    one, two = load_folder(folder).members
    assert (one.shared_bytes, two.shared_bytes) == (0, FEATURES * 256 * 2)

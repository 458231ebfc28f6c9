"""The memory contract: what members take is measured, and a server that would take too much does not start."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.capturing import CapturingDevice
from tests.models import register
from tests.servers import DIGITS, write_ensemble
from twinfer_server.device import CpuDevice
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import MemberMemory, check_budget, load_ensemble, measure_memory, warm_up
from twinfer_server.inputs import InputLimits
from twinfer_server.serve import prepare_ensemble
from twinfer_server.settings import ServerSettings
from twinfer_server.trust import Trust

ROWS, WIDE, CLASSES = 16, 1000, 10

TOML = """
    name = "wide"
    version = 1
    task = "classification"
    [members.wide]
    model = "{model}"
    [members.wide.input.x]
    kind = "tensor"
    dtype = "float32"
    shape = [4]
    [fusion]
    method = "weighted_mean"
    [batching]
    max_batch_size = 16
    {memory}
"""


class Wide(nn.Module):
    """Holds two [rows, WIDE] float32 at once, and never three."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, WIDE), nn.Linear(WIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x).relu())
        return out


def write_wide(folder: Path, memory: str = "") -> Path:
    return write_ensemble(folder, TOML.format(model=register(Wide()), memory=memory))


def test_every_part_of_a_members_memory_is_measured(tmp_path: Path) -> None:
    device = CpuDevice(lanes=1)
    ensemble = load_ensemble(write_wide(tmp_path), device, Trust(runs_any_code=True), InputLimits())
    memory = measure_memory(ensemble.members)["wide"]
    assert memory.parameters == 4 * (5 * WIDE + (WIDE + 1) * CLASSES)
    assert memory.staging == 2 * ROWS * 4 * 4
    assert memory.captures == 0
    assert memory.activations == pytest.approx(2 * ROWS * WIDE * 4, rel=0.05)
    assert memory.total == memory.parameters + memory.staging + memory.activations


def test_the_digits_say_what_they_take() -> None:
    ensemble = prepare_ensemble(DIGITS, ServerSettings(), lambda done, total: None)
    assert set(ensemble.memory) == {"vision", "language"}
    assert all(0 < member.parameters < member.total for member in ensemble.memory.values())


@pytest.mark.parametrize(
    ("in_folder", "in_settings"),
    [
        pytest.param("[memory]\nbudget_mb = 0.1", 0.0, id="the folder's budget"),
        pytest.param("", 0.1, id="the operator's budget"),
        pytest.param("[memory]\nbudget_mb = 100.0", 0.1, id="the operator's, where it is smaller"),
        pytest.param("[memory]\nbudget_mb = 0.1", 100.0, id="the folder's, where it is smaller"),
    ],
)
def test_a_server_that_would_take_more_than_its_budget_does_not_start(tmp_path: Path, in_folder: str, in_settings: float) -> None:
    settings = ServerSettings(trust_code=True, memory_budget_mb=in_settings)
    with pytest.raises(InvalidEnsemble) as refusal:
        prepare_ensemble(write_wide(tmp_path, in_folder), settings, lambda done, total: None)
    assert str(refusal.value).startswith("memory: the members take 0.18")
    assert "allowed: 0.1 MB. wide 0.18" in str(refusal.value)
    assert "(parameters 0.06, staging 0.000512, captures 0, activations 0.12" in str(refusal.value)


def test_a_budget_that_is_just_met_is_met() -> None:
    memory = {"one": MemberMemory(10, 20, 30, 40), "other": MemberMemory(1, 2, 3, 4)}
    check_budget(memory, 0, 110)
    check_budget(memory, 0, None)
    with pytest.raises(InvalidEnsemble):
        check_budget(memory, 0, 109)


def test_captures_of_whole_flights_count_too() -> None:
    memory = {"one": MemberMemory(10, 20, 30, 40)}
    check_budget(memory, 50, 150)
    with pytest.raises(InvalidEnsemble, match=r"captures of whole flights 5\.1e-05 MB"):
        check_budget(memory, 51, 150)


class MeteredDevice(CapturingDevice):
    """Says that every graph takes 1000 bytes."""

    def memory_bytes(self) -> int:
        return 1000 * len(self.graphs)


def test_members_and_whole_flights_say_what_their_captures_take(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DIGITS, tmp_path / "digits", ignore=shutil.ignore_patterns("heldout", "fit", "*.py")))
    spec = folder / "ensemble.toml"
    spec.write_text('execution = "graph"\n' + spec.read_text(encoding="utf-8"), encoding="utf-8")
    ensemble = load_ensemble(folder, MeteredDevice(), Trust.read(False, ()), InputLimits())
    warm_up(ensemble, None, lambda done, total: None)
    for member in ensemble.members:
        assert member.cuda_graph_bytes == 1000 * sum(len(slot.captures) for slot in member.slots) > 0
    assert ensemble.flight_bytes == 1000 * len(ensemble.flight_captures) > 0


def test_memory_that_is_given_back_counts_once() -> None:
    device = CpuDevice(lanes=1)

    def work() -> None:
        for _ in range(10):
            torch.ones(1000).add(1.0)

    with torch.inference_mode():
        assert 8000 <= device.peak_bytes(work) <= 12000


# --- members that share a backbone ----------------------------------------------------------------------------------------


class Backboned(nn.Module):
    """A large backbone, the same in every instance, and a head of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, WIDE)
        torch.manual_seed(seed)
        self.head = nn.Linear(WIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


TWO = """
    name = "two"
    version = 1
    task = "classification"
    [members.one]
    model = "{one}"
    [members.one.input.x]
    kind = "tensor"
    dtype = "float32"
    shape = [4]
    [members.other]
    model = "{other}"
    [members.other.input.x]
    kind = "tensor"
    dtype = "float32"
    shape = [4]
    [fusion]
    method = "weighted_mean"
"""


def test_a_backbone_that_two_members_have_lies_in_memory_once_and_both_answer_as_before(tmp_path: Path) -> None:
    one, other = Backboned(1), Backboned(2)
    x = torch.randn(3, 4)
    expected = [one(x), other(x)]
    folder = write_ensemble(tmp_path, TWO.format(one=register(one), other=register(other)))
    device = CpuDevice(lanes=2)
    ensemble = load_ensemble(folder, device, Trust(runs_any_code=True), InputLimits())
    assert one.backbone.weight.data_ptr() == other.backbone.weight.data_ptr()
    assert one.head.weight.data_ptr() != other.head.weight.data_ptr()
    large = 4 * WIDE * 4  # the bias of 4,000 bytes is not worth the looking
    assert [member.shared_bytes for member in ensemble.members] == [0, large]
    memory = measure_memory(ensemble.members)
    assert memory["one"].parameters - memory["other"].parameters == large
    assert all((model(x) == answer).all() for model, answer in zip((one, other), expected, strict=True))

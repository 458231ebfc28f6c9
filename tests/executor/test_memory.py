"""The memory contract: what members take is measured, and a server that would take too much does not start."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.batches import load_warm
from tests.capturing import CapturingDevice
from tests.models import write_members
from tests.servers import DIGITS
from twinfer_server.device import CpuDevice
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import MEGABYTE, Ensemble, MemberMemory, check_budget
from twinfer_server.serve import prepare_ensemble
from twinfer_server.settings import ServerSettings

REQUESTS, WIDE, CLASSES = 16, 100_000, 10
PARAMETERS, STAGING = 4 * (WIDE + CLASSES * WIDE), 2 * REQUESTS * 4


class Wide(nn.Sequential):
    """A large backbone, the same in every instance, and a head of its own."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(0)
        backbone = nn.Linear(1, WIDE, bias=False)
        torch.manual_seed(seed)
        super().__init__(backbone, nn.Linear(WIDE, CLASSES, bias=False))


def write_wide(folder: Path, tail: str = "") -> Path:
    return write_members(folder, {"wide": Wide(1)}, tail=tail, max_batch_size=REQUESTS)


class MeteredDevice(CapturingDevice):
    """Says that every graph takes 1000 bytes, and that all work holds 10 at its peak."""

    def memory_bytes(self) -> int:
        return 1000 * len(self.graphs)

    def peak_bytes(self, work: object) -> int:
        return 10


def test_every_part_of_a_members_memory_is_measured(tmp_path: Path) -> None:
    ensemble = load_warm(write_wide(tmp_path), MeteredDevice())
    graphs = 1000 * sum(len(buffers.graphs) for buffers in ensemble.members[0].buffers)
    assert graphs > 0
    assert ensemble.memory == {"wide": MemberMemory(PARAMETERS, STAGING, graphs, 10)}
    assert ensemble.memory["wide"].total == PARAMETERS + STAGING + graphs + 10


def prepare(folder: Path, budget_mb: float = 0.0) -> Ensemble:
    return prepare_ensemble(folder, ServerSettings(trust_code=True, memory_budget_mb=budget_mb), lambda done, total: None)


def test_the_digits_say_what_they_take() -> None:
    memory = prepare(DIGITS).memory
    assert set(memory) == {"vision", "language"}
    assert all(0 < member.parameters < member.total for member in memory.values())


@pytest.mark.parametrize(
    ("in_folder", "in_settings"),
    [
        pytest.param("[memory]\nbudget_mb = 4.0", 0.0, id="the folder's budget"),
        pytest.param("", 4.0, id="the operator's budget"),
        pytest.param("[memory]\nbudget_mb = 100.0", 4.0, id="the operator's, where it is smaller"),
        pytest.param("[memory]\nbudget_mb = 4.0", 100.0, id="the folder's, where it is smaller"),
    ],
)
def test_a_server_that_would_take_more_than_its_budget_does_not_start(tmp_path: Path, in_folder: str, in_settings: float) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        prepare(write_wide(tmp_path, in_folder), in_settings)
    assert str(refusal.value) == (
        "memory: the members take 4.4 MB; allowed: 4 MB. wide 4.4 MB (parameters 4.4, staging 0.000128, graphs 0, activations 0). "
        "A smaller batching.max_batch_size takes less"
    )
    assert round(PARAMETERS / MEGABYTE, 1) == 4.4


def test_a_budget_that_is_just_met_is_met() -> None:
    memory = {"one": MemberMemory(10, 20, 30, 40), "other": MemberMemory(1, 2, 3, 4)}
    check_budget(memory, 110)
    check_budget(memory, None)
    with pytest.raises(InvalidEnsemble):
        check_budget(memory, 109)


def test_a_backbone_that_two_members_have_lies_in_memory_once_and_both_answer_as_before(tmp_path: Path) -> None:
    one, other = Wide(1), Wide(2)
    x = torch.randn(3, 1)
    expected = [one(x), other(x)]
    ensemble = load_warm(write_members(tmp_path, {"one": one, "other": other}), CpuDevice(streams=2))
    for name, is_shared in (("0.weight", True), ("1.weight", False)):
        assert (one.get_parameter(name).data_ptr() == other.get_parameter(name).data_ptr()) == is_shared
    assert [member.shared_bytes for member in ensemble.members] == [0, 4 * WIDE]
    assert ensemble.memory["one"].parameters - ensemble.memory["other"].parameters == 4 * WIDE
    assert all((model(x) == answer).all() for model, answer in zip((one, other), expected, strict=True))

"""What fusion does on a CUDA device: it changes between captured flights, chains stay on the device, all as on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.flights import copy_digits, cuda, fly, load, make_rows
from tests.test_chain import Encoder, write_chain
from tests.test_chain import fly as fly_chain
from twinfer_server.device import CpuDevice
from twinfer_server.executor import FusionChange, FusionVersions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

PLANS = ["serial", "streams", "graph"]
CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"weights": {"vision": 0.9, "language": 0.1}},
    "temperatures": {"temperatures": {"language": 3.0}},
    "another method": {"method": "maximum"},
}
MIX = ["image+text", "text", "image+text", "image", "image+text"]


@contextmanager
def nobody_in_the_air() -> Iterator[None]:
    yield


@pytest.mark.parametrize("execution", PLANS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_fusion_answers_like_the_cpus_and_goes_back(tmp_path: Path, execution: str, change: dict[str, Any]) -> None:
    folder = copy_digits(tmp_path / "digits", f'execution = "{execution}"')
    ours, theirs = load(folder, cuda()), load(copy_digits(tmp_path / "other", 'execution = "serial"'), CpuDevice(lanes=2))
    before = fly(ours, make_rows(ours, MIX))
    versions = [FusionVersions(ensemble, nobody_in_the_air) for ensemble in (ours, theirs)]
    for each in versions:
        each.update(FusionChange(**change))
    for ours_now, theirs_now in zip(fly(ours, make_rows(ours, MIX)), fly(theirs, make_rows(theirs, MIX)), strict=True):
        assert ours_now.fused == pytest.approx(theirs_now.fused, abs=1e-4)
        assert ours_now.fusion_version == 2
    versions[0].roll_back(1)
    for again, first in zip(fly(ours, make_rows(ours, MIX)), before, strict=True):
        assert (again.fused == first.fused).all()
        assert again.fusion_version == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs, and torch finds fewer")
@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_a_member_on_another_gpu_answers_like_one_at_home(tmp_path: Path, execution: str) -> None:
    folder = copy_digits(tmp_path / "digits", f'execution = "{execution}"')
    spec = folder / "ensemble.toml"
    text = spec.read_text(encoding="utf-8")
    spec.write_text(text.replace("[members.language]", '[members.language]\ndevice = "cuda:1"', 1), encoding="utf-8")
    ours, theirs = load(folder, cuda()), load(copy_digits(tmp_path / "other", 'execution = "serial"'), CpuDevice(lanes=2))
    assert [str(member.device.torch_device) for member in ours.members] == ["cuda:0", "cuda:1"]
    assert "graph" not in ours.plans
    for slot in (0, 1):
        for ours_now, theirs_now in zip(fly(ours, make_rows(ours, MIX), slot), fly(theirs, make_rows(theirs, MIX)), strict=True):
            assert ours_now.fused == pytest.approx(theirs_now.fused, abs=1e-4)
            assert [member.state for member in ours_now.members] == [member.state for member in theirs_now.members]


@pytest.mark.parametrize("execution", PLANS)
def test_a_chain_answers_like_the_cpus(tmp_path: Path, execution: str) -> None:
    mix: list[tuple[float | None, float | None]] = [(n / 8, -n / 16) for n in range(7)]
    ours = load(write_chain(tmp_path / "ours", Encoder(), execution), cuda())
    theirs = load(write_chain(tmp_path / "theirs", Encoder(), "serial"), CpuDevice(lanes=2))
    for ours_now, theirs_now in zip(fly_chain(ours, mix, execution), fly_chain(theirs, mix, "serial"), strict=True):
        assert ours_now.fused == pytest.approx(theirs_now.fused, abs=1e-5)

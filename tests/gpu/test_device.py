"""What the CUDA device promises: waiting is found without a warning, graphs outlive each other, CPU members take no GPU."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.gpu.flights import cuda
from tests.servers import DIGITS
from twinfer_server.device import CudaDevice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return cuda()


@pytest.fixture
def always_warning() -> Iterator[None]:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch warns once in a process, and another test may have been first
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("always_warning")
@pytest.mark.parametrize("is_waiting", [False, True], ids=["goes on", "waits"])
def test_where_work_waits_is_found_without_a_warning_and_without_a_trace(device: CudaDevice, is_waiting: bool) -> None:
    values = torch.ones(4, device=device.torch_device)

    def work() -> list[Tensor]:
        return [values * values.sum().item() if is_waiting else values * values.sum()]

    with torch.inference_mode():
        assert bool(device.find_sync(device.lane("probe"), work)) == is_waiting
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_graph_computes_on_when_another_of_the_same_lane_is_gone(device: CudaDevice) -> None:
    lane = device.lane("several")
    generator = torch.Generator(device.torch_device).manual_seed(0)
    # Sums so long that cuBLAS computes them in parts, in its workspace.
    left = torch.randn((256, 32768), dtype=torch.bfloat16, device=device.torch_device, generator=generator)

    def work() -> list[Tensor]:
        return [left @ left.T]

    with torch.inference_mode():
        assert device.find_sync(lane, work) == ""
        staying, leaving = (device.capture(lane, work, device.graph_pool()) for _ in range(2))
        lane.run(staying.replay)
        torch.cuda.synchronize()
        before = staying.outputs[0].clone()
        del leaving
        gc.collect()
        torch.cuda.empty_cache()
        # Whoever takes the memory that has been freed is not written to either.
        others = [torch.zeros(2**20, device=device.torch_device) for _ in range(64)]
        lane.run(staying.replay)
        torch.cuda.synchronize()
        assert torch.equal(staying.outputs[0], before)
        assert not any(other.any() for other in others)


WITHOUT_A_GPU = """
import sys
from pathlib import Path

import torch

from twinfer_server.serve import prepare_ensemble
from twinfer_server.settings import ServerSettings

prepare_ensemble(Path(sys.argv[1]), ServerSettings(device="cpu"), lambda done, total: None)
assert not torch.cuda.is_initialized()
"""


def test_an_ensemble_on_the_cpu_takes_nothing_of_a_gpu_that_is_there() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_A_GPU, str(DIGITS)], check=True)

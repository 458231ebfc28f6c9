"""What the CUDA device promises of captures: waiting is found without a warning, and no graph touches another's memory."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.gpu.flights import cuda
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

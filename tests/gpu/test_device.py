"""What the CUDA device promises: waiting is found without a warning, graphs outlive each other, CPU members take no GPU."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.servers import DIGITS
from twinfer_server.device import CannotCapture, CudaDevice
from twinfer_server.device.cuda_graph import find_sync

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


@pytest.fixture
def always_warning() -> Iterator[None]:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch warns once in a process, and another test may have been first
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("always_warning")
@pytest.mark.parametrize("waits", [False, True], ids=["goes on", "waits"])
def test_where_work_waits_is_found_without_a_warning_and_without_a_trace(device: CudaDevice, waits: bool) -> None:
    values, stream = torch.ones(4, device=device.torch_device), device.stream("check")

    def work() -> list[Tensor]:
        return [values * values.sum().item() if waits else values * values.sum()]

    with torch.inference_mode():
        assert bool(find_sync(stream.cuda_stream, work)) == waits
        if waits:
            with pytest.raises(CannotCapture, match="it waits for the device: "):
                device.capture(stream, work)
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_graph_computes_on_when_another_of_the_same_stream_is_gone(device: CudaDevice) -> None:
    stream = device.stream("several")
    generator = torch.Generator(device.torch_device).manual_seed(0)
    # Sums so long that cuBLAS computes them in parts, in its workspace.
    left = torch.randn((256, 32768), dtype=torch.bfloat16, device=device.torch_device, generator=generator)

    def work() -> list[Tensor]:
        return [left @ left.T]

    with torch.inference_mode():
        staying, leaving = (device.capture(stream, work, device.graph_pool()) for _ in range(2))
        stream.submit(staying.replay)
        torch.cuda.synchronize()
        before = staying.outputs[0].clone()
        del leaving
        gc.collect()
        torch.cuda.empty_cache()
        # What takes the memory that has been freed is not written to either.
        others = [torch.zeros(2**20, device=device.torch_device) for _ in range(64)]
        torch.cuda.synchronize()
        stream.submit(staying.replay)
        torch.cuda.synchronize()
        assert torch.equal(staying.outputs[0], before)
        assert not any(other.any() for other in others)


def test_while_serving_a_capture_bears_other_threads_that_use_the_device(device: CudaDevice) -> None:
    values, ended = torch.arange(1024.0, device=device.torch_device), threading.Event()
    serving, capturing = device.stream("serving"), device.stream("capture")

    def read() -> None:
        values.cpu()  # waits for the device, which no capture bears on its own thread

    def serve() -> None:
        while not ended.is_set():
            serving.submit(read)

    server = threading.Thread(target=serve)
    with torch.inference_mode():
        server.start()
        try:
            graphs = [device.capture(capturing, lambda: [values + 1], is_serving=True) for _ in range(20)]
        finally:
            ended.set()
            server.join()
        for graph in graphs:
            capturing.submit(graph.replay)
        torch.cuda.synchronize()
        assert all(torch.equal(graph.outputs[0], values + 1) for graph in graphs)


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

"""What fusion does on a CUDA device: it changes while batches run, chains stay on the device, all as on the CPU."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.batches import assert_alike, compute, copy_digits, load_warm, make_digits
from tests.executor.test_chain import MIXES, make_chained, write_chain
from tests.fusions import EXAMPLES, Example, make_requests
from tests.servers import DIGITS
from twinfer_server.device import CpuDevice, CudaDevice, Execution
from twinfer_server.executor import FusionChange, FusionVersions
from twinfer_server.fusion import FusionResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

EXECUTIONS = ["serial", "streams"]
CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"weights": {"vision": 0.9, "language": 0.1}},
    "temperatures": {"temperatures": {"language": 3.0}},
    "another method": {"method": "maximum"},
}
MIX = ["image+text", "text", "image+text", "image", "image+text"]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_fusion_answers_like_the_cpus_and_goes_back(execution: Execution, change: dict[str, Any]) -> None:
    ours, theirs = load_warm(DIGITS, CudaDevice(torch.device("cuda", 0))), load_warm(DIGITS, CpuDevice(streams=2))
    before = compute(ours, make_digits(ours, MIX), execution)
    versions = [FusionVersions(ensemble) for ensemble in (ours, theirs)]
    for each in versions:
        each.update(FusionChange(**change))
    assert ours.fusion.graphs
    changed = compute(ours, make_digits(ours, MIX), execution)
    assert_alike(changed, compute(theirs, make_digits(theirs, MIX), "serial"), tolerance=1e-4)
    assert {answer.fusion_version for answer in changed} == {2}
    versions[0].roll_back(1)
    for again, first in zip(compute(ours, make_digits(ours, MIX), execution), before, strict=True):
        assert (again.prediction == first.prediction).all()
        assert again.fusion_version == 1


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_versions_are_captured_while_batches_run_and_every_answer_is_one_versions_own(execution: Execution) -> None:
    ensemble = load_warm(DIGITS, CudaDevice(torch.device("cuda", 0)))
    updates: list[BaseException] = []
    ended = threading.Event()

    def update() -> None:
        try:
            versions = FusionVersions(ensemble)
            for step in range(10):
                versions.update(FusionChange(weights={"vision": 1.0 + step, "language": 1.0}))
        except BaseException as error:
            updates.append(error)
        finally:
            ended.set()

    changing = threading.Thread(target=update)
    changing.start()
    answers = []
    requests = make_digits(ensemble, ["image+text"] * 5)
    turn = 0
    while not ended.is_set():
        answers += compute(ensemble, requests, execution, turn % 2)
        turn += 1
    changing.join()
    assert updates == []
    answers += compute(ensemble, requests, execution)
    assert answers[-1].fusion_version == 11
    assert ensemble.fusion.graphs
    for answer in answers:
        share = max(1, answer.fusion_version - 1)
        assert [member.weight for member in answer.members] == pytest.approx([share / (share + 1), 1 / (share + 1)], abs=1e-6)
    expected = load_warm(DIGITS, CpuDevice(streams=2))
    FusionVersions(expected).update(FusionChange(weights={"vision": 10.0, "language": 1.0}))
    for ours, theirs in zip(answers[-5:], compute(expected, make_digits(expected, ["image+text"] * 5)), strict=True):
        assert ours.prediction == pytest.approx(theirs.prediction, abs=1e-4)
    ensemble.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs, and torch finds fewer")
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_member_on_another_gpu_answers_like_one_at_home(tmp_path: Path, execution: Execution) -> None:
    folder = copy_digits(tmp_path / "digits", language='device = "cuda:1"')
    ours, theirs = load_warm(folder, CudaDevice(torch.device("cuda", 0))), load_warm(DIGITS, CpuDevice(streams=2))
    assert [str(member.device.torch_device) for member in ours.members] == ["cuda:0", "cuda:1"]
    expected = compute(theirs, make_digits(theirs, MIX), "serial")
    for buffer_set in (0, 1):
        assert_alike(compute(ours, make_digits(ours, MIX), execution, buffer_set), expected, tolerance=1e-4)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_chain_answers_like_the_cpus(tmp_path: Path, execution: Execution, mix: Any) -> None:
    ours = load_warm(write_chain(tmp_path / "ours"), CudaDevice(torch.device("cuda", 0)))
    theirs = load_warm(write_chain(tmp_path / "theirs"), CpuDevice(streams=2))
    assert_alike(compute(ours, make_chained(ours, mix), execution), compute(theirs, make_chained(theirs, mix), "serial"))


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_every_fusion_captured_once_and_replayed_with_other_requests_answers_like_the_cpus(example: Example) -> None:
    device = CudaDevice(torch.device("cuda", 0))
    stream, requests = device.stream("fusion"), 6
    fusion, on_device = example.build(), example.build().to(device.torch_device)
    with torch.inference_mode():
        outputs, *rest = make_requests(example, requests, seed=0)
        inputs = [tensor.to(device.torch_device) for tensor in (*outputs, *rest)]

        def work() -> list[torch.Tensor]:
            result: FusionResult = on_device(inputs[:-2], *inputs[-2:])
            return list(result.parts())

        graph = device.capture(stream, work)
        for seed in (1, 2):
            outputs, weights, samples = make_requests(example, requests, seed)
            for buffer, values in zip(inputs, (*outputs, weights, samples), strict=True):
                buffer.copy_(values)
            torch.cuda.synchronize()
            stream.submit(graph.replay)
            torch.cuda.synchronize()
            expected: FusionResult = fusion(outputs, weights, samples)
            for found, wanted in zip(graph.outputs, expected.parts(), strict=True):
                torch.testing.assert_close(found.cpu(), wanted, equal_nan=True, atol=1e-5, rtol=1e-4)

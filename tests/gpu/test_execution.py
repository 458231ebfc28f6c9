"""What only a CUDA device can show: it agrees with the CPU, members overlap, memory stays flat, late requests are answered."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn

from tests.batches import assert_alike, compute, form, launch, load_warm, make_digits, member_states, respond
from tests.calls import PATIENCE_SECONDS
from tests.models import edit_spec, number, states, write_members
from tests.servers import DIGITS, running
from twinfer import AsyncClient
from twinfer_server.device import CpuDevice, CudaDevice, Execution
from twinfer_server.executor import Bucket, Ensemble, make_synthetic_request, run_synthetic
from twinfer_server.executor.buffers import BUFFER_SETS
from twinfer_server.executor.latency import doublings
from twinfer_server.types import Request, State

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

FULL = ["image+text"] * 32
MIXES = {
    "one request": FULL[:1],
    "five requests": FULL[:5],
    "a full batch": FULL,
    "mixed modalities": ["image+text", "text", "image", "image+text", "text"],
    "one member alone": ["text", "text"],
}


def cuda() -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


@pytest.fixture(params=["serial", "streams"])
def execution(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[Ensemble]:
    ensemble = load_warm(DIGITS, cuda())
    yield ensemble
    ensemble.close()


@pytest.fixture(scope="module")
def on_cpu() -> Ensemble:
    return load_warm(DIGITS, CpuDevice(streams=2))


def test_members_have_a_graph_per_bucket_and_buffer_set_and_the_fusion_one_per_batch_size(on_gpu: Ensemble) -> None:
    sizes = doublings(1, on_gpu.spec.batching.max_batch_size)
    for member in on_gpu.members:
        assert member.no_graph_reason == ""
        assert member.graph_bytes > 0
        for buffers in member.buffers:
            assert set(buffers.graphs) == {Bucket(size, tokens) for size in sizes for tokens in member.token_sizes}
    assert [set(graphs) for graphs in on_gpu.fusion.graphs.values()] == [set(sizes)] * BUFFER_SETS


@pytest.mark.parametrize("buffer_set", [0, 1])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_either_execution_answers_like_the_cpu(
    on_gpu: Ensemble, on_cpu: Ensemble, mix: Sequence[str], buffer_set: int, execution: Execution
) -> None:
    compute(on_gpu, make_digits(on_gpu, FULL), execution, buffer_set)  # leaves requests behind in the padding
    ours = compute(on_gpu, make_digits(on_gpu, mix), execution, buffer_set)
    assert_alike(ours, compute(on_cpu, make_digits(on_cpu, mix), "serial"), tolerance=1e-4)
    assert all(member.used_cuda_graph for answer in ours for member in answer.members if member.state is State.OK)


def test_ten_thousand_batches_allocate_nothing(on_gpu: Ensemble, execution: Execution) -> None:
    mixes = [make_digits(on_gpu, mix) for mix in MIXES.values()]

    def compute_all(rounds: int) -> None:
        for turn in range(rounds):
            for requests in mixes:
                compute(on_gpu, requests, execution, turn % 2)

    compute_all(20)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    compute_all(10_000 // len(mixes))
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    for counter in ("segment.all.allocated", "reserved_bytes.all.current", "allocated_bytes.all.current"):
        assert after[counter] == before[counter], counter


# Many small multiplications, one behind the other: each fills a small part of a GPU, so two such members fit side by side.
SMALL = """
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.eye(64) * 0.999)

        def forward(self, x):
            work = self.weight
            for _ in range(400):
                work = work @ self.weight
            return torch.cat([x, -x], dim=1) + 0 * work[0, 0]

    class Dawdling(Small):
        def forward(self, x):
            torch.cuda._sleep(400_000_000)  # some 0.2 s of a GPU that does nothing else
            return super().forward(x)
"""


def load_small(folder: Path, left: str, right: str) -> Ensemble:
    write_members(folder, {"left": f"python:small.py:{left}", "right": f"python:small.py:{right}"}, max_batch_size=1)
    (folder / "small.py").write_text(dedent(SMALL), encoding="utf-8")
    return load_warm(folder, cuda())


def make_small(ensemble: Ensemble) -> Request:
    return make_synthetic_request({member.index: member.example(1, 0) for member in ensemble.members})


def measure_overlap(ensemble: Ensemble, execution: Execution) -> float:
    """Return the median of two members' times alone over their time together."""
    ratios = []
    with torch.inference_mode():
        for _ in range(30):
            both, left, right = (run_synthetic(ensemble, Bucket(1), members, execution) for members in ((0, 1), (0,), (1,)))
            ratios.append((left.join_seconds + right.join_seconds) / both.join_seconds)
    return statistics.median(ratios)


def test_two_members_that_leave_the_gpu_half_empty_overlap_on_streams_and_not_in_turn(tmp_path: Path) -> None:
    ensemble = load_small(tmp_path, "Small", "Small")
    assert measure_overlap(ensemble, "streams") > 1.2
    assert measure_overlap(ensemble, "serial") < 1.2
    ensemble.close()


def test_members_start_after_their_copy_side_by_side_and_the_fusion_after_both(tmp_path: Path) -> None:
    ensemble = load_small(tmp_path, "Small", "Small")
    for _ in range(100):
        batch = launch(form(ensemble, [make_small(ensemble)], "streams"))
        batch.completed.wait()
        for run in batch.runs:
            assert run.started.seconds_since(run.staged) >= 0
            assert run.done.seconds_since(run.started) > 0
            assert batch.completed.seconds_since(run.done) >= 0
        left, right = batch.runs
        assert left.done.seconds_since(right.started) > 0  # side by side,
        assert right.done.seconds_since(left.started) > 0  # neither behind the other
        ensemble.release(batch)
    ensemble.close()


def test_a_request_that_cannot_wait_is_answered_while_the_other_member_still_runs(tmp_path: Path) -> None:
    ensemble = load_small(tmp_path, "Dawdling", "Small")
    batch = launch(form(ensemble, [make_small(ensemble)], "streams"))
    until = time.monotonic() + PATIENCE_SECONDS
    while not batch.runs[1].done.is_done():
        assert not batch.completed.is_done(), "the quick member came with the completion, not before it"
        assert time.monotonic() < until
    [late] = respond(batch, batch.fuse([0]))
    assert member_states(late) == [State.LATE, State.OK]
    [whole] = respond(batch)
    assert member_states(whole) == [State.OK, State.OK]
    ensemble.release(batch)
    ensemble.close()


class Napping(nn.Module):
    """An opinion that sleeps on the GPU when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.nap_cycles = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.nap_cycles:
            torch.cuda._sleep(self.nap_cycles)
        return torch.cat([x, -x], dim=1)


def test_callers_with_short_deadlines_are_answered_beside_a_member_that_is_stuck_on_the_gpu(tmp_path: Path) -> None:
    napping = Napping()
    folder = write_members(tmp_path, {"stuck": napping, "free": Napping()}, 'execution = "streams"', max_batch_size=32)
    edit_spec(folder, "[members.stuck]", "[members.stuck]\ncuda_graph = false")  # for a graph would always do the same
    inputs = {"stuck": number(0.5), "free": number(0.5)}

    async def call(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.infer(inputs, timeout=60)
            napping.nap_cycles = 6_000_000_000  # some 3 s
            first = asyncio.create_task(client.infer(inputs, timeout=60, policy="require_all"))
            calls = [client.infer(inputs, timeout=0.25, policy="best_effort") for _ in range(32)]
            for answer in await asyncio.gather(*calls):
                assert states(answer) == {"stuck": "LATE", "free": "OK"}
            napping.nap_cycles = 0
            assert not (await first).degraded
            assert not (await client.infer(inputs, timeout=60, policy="require_all")).degraded

    with running(folder, trust_code=True, device="cuda") as server:
        asyncio.run(call(server.address))

"""CUDA graphs: what is replayed answers like what is computed; shown on a device that replays in Python."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.batches import assert_alike, compute, copy_digits, form, launch, load_warm, make_digits, member_states, respond
from tests.capturing import CapturingDevice, ReplayedWork
from tests.models import as_any
from tests.servers import DIGITS
from twinfer_server.device import CpuDevice, Execution
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor import Bucket, Ensemble, FusionChange, FusionVersions
from twinfer_server.executor.buffers import BUFFER_SETS
from twinfer_server.executor.latency import doublings
from twinfer_server.types import State

FULL = ["image+text"] * 8
MIXES = {
    "one request": FULL[:1],
    "three requests in a bucket of four": FULL[:3],
    "a full bucket": FULL,
    "a text-only request between others": ["image+text", "text", "image+text"],
    "requests that share no input": ["text", "image", "text", "image", "image"],
    "one member alone": ["text", "text"],
}


@pytest.fixture(scope="module")
def captured() -> Ensemble:
    return load_warm(DIGITS, CapturingDevice())


@pytest.fixture(scope="module")
def plain() -> Ensemble:
    return load_warm(DIGITS, CpuDevice(streams=2))


def graphs_of(ensemble: Ensemble) -> list[ReplayedWork]:
    assert isinstance(ensemble.device, CapturingDevice)
    return ensemble.device.graphs


class Copies(TorchDispatchMode):
    """Remembers, of every copy while it is entered, whether both sides are contiguous."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.are_contiguous: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.are_contiguous.append(all(side.is_contiguous() for side in args[:2]))
        return func(*args, **(kwargs or {}))


def test_samples_of_fewer_tokens_than_fit_travel_in_contiguous_copies(captured: Ensemble) -> None:
    text = captured.members[1]
    bucket = Bucket(3, text.token_sizes[0])
    assert bucket.tokens < text.token_sizes[-1]
    with torch.inference_mode(), Copies() as copies:
        text.buffers[0].copy_in(bucket)
    assert copies.are_contiguous == [True] * len(text.buffer_specs)


@pytest.mark.parametrize("is_deterministic", [False, True], ids=["every bucket", "the one of a deterministic ensemble"])
def test_members_have_a_graph_per_bucket_and_buffer_set_and_the_fusion_one_per_batch_size(
    tmp_path: Path, is_deterministic: bool
) -> None:  # fmt: skip
    ensemble = load_warm(copy_digits(tmp_path / "digits", f"deterministic = {str(is_deterministic).lower()}"), CapturingDevice())
    most = ensemble.spec.batching.max_batch_size
    sizes = {most} if is_deterministic else set(doublings(1, most))
    sets: list[list[Any]] = []
    for member in ensemble.members:
        assert member.no_graph_reason == ""
        tokens = {member.token_sizes[-1]} if is_deterministic else set(member.token_sizes)
        for buffers in member.buffers:
            assert set(buffers.graphs) == {Bucket(size, count) for size in sizes for count in tokens}
            sets.append([graph.graph for graph in buffers.graphs.values()])
    for graphs in ensemble.fusion.graphs.values():
        assert set(graphs) == sizes
        sets.append([graph.graph for graph in graphs.values()])
    # Those that never run at the same time share memory, and no others.
    pools = [{id(graph.pool) for graph in graphs} for graphs in sets]
    assert all(len(found) == 1 for found in pools)
    assert len(set.union(*pools)) == len(sets) == 6


@pytest.mark.parametrize("execution", ["serial", "streams"])
@pytest.mark.parametrize("buffer_set", [0, 1])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_replayed_batch_answers_like_a_computed_one(
    captured: Ensemble, plain: Ensemble, mix: list[str], buffer_set: int, execution: Execution
) -> None:
    compute(captured, make_digits(captured, FULL), execution, buffer_set)  # leaves requests behind in the padding
    before = sum(graph.replays for graph in graphs_of(captured))
    replayed = compute(captured, make_digits(captured, mix), execution, buffer_set)
    asked = {name for inputs in mix for name in inputs.split("+")}
    assert sum(graph.replays for graph in graphs_of(captured)) == before + len(asked) + 1  # a member's each, and the fusion's
    assert_alike(replayed, compute(plain, make_digits(plain, mix), "serial"))
    for response in replayed:
        assert all(member.used_cuda_graph == (member.state is State.OK) for member in response.members)


def test_an_answer_is_not_changed_by_the_batch_that_reuses_its_buffers(captured: Ensemble) -> None:
    first = compute(captured, make_digits(captured, FULL[:1]))[0]
    before = first.prediction.copy()
    compute(captured, make_digits(captured, ["text", "image"] * 2))
    assert (first.prediction == before).all()


def test_a_late_request_of_a_replayed_batch_is_fused_from_the_members_that_are_done(captured: Ensemble) -> None:
    batch = launch(form(captured, make_digits(captured, FULL[:1])))
    batch.runs[1].done = captured.device.event()  # as if its output had not come yet
    [answer] = respond(batch, batch.fuse([0]))
    captured.release(batch)
    assert member_states(answer) == [State.OK, State.LATE]
    assert [member.weight for member in answer.members] == [1.0, 0.0]


@contextmanager
def refused(graph: object) -> Iterator[None]:
    as_any(graph).is_refused = True
    yield
    as_any(graph).is_refused = False


def test_a_member_whose_graph_cannot_be_launched_fails_alone_and_never_answers_with_the_batch_before(captured: Ensemble) -> None:
    compute(captured, make_digits(captured, FULL[:1]))
    requests = make_digits(captured, FULL[:2])[1:]
    vision = captured.members[0]
    with refused(vision.buffers[0].graphs[vision.bucket([requests[0].samples[0]])].graph):
        [answer] = compute(captured, requests)
    assert member_states(answer) == [State.FAILED, State.OK]
    assert "the member raised RuntimeError" in str(answer.members[0].error)
    text_only = compute(captured, make_digits(captured, ["text", "text"]))[1]
    assert answer.prediction == pytest.approx(text_only.prediction, abs=1e-6)


def test_where_the_fusions_graph_cannot_be_launched_the_host_fuses(captured: Ensemble, plain: Ensemble) -> None:
    batch = form(captured, make_digits(captured, FULL[:3]))
    with refused(captured.fusion.graphs[batch.fusion_buffers][4].graph):
        launch(batch)
    assert batch.result is None
    assert_alike(respond(batch, batch.fuse(range(3))), compute(plain, make_digits(plain, FULL[:3])))
    captured.release(batch)


CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"weights": {"vision": 0.9, "language": 0.1}},
    "temperatures": {"temperatures": {"language": 3.0}},
    "another method": {"method": "maximum"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_new_version_of_the_fusion_has_graphs_of_its_own_and_an_earlier_one_keeps_its(
    change: dict[str, Any], captured: Ensemble, plain: Ensemble
) -> None:
    versions = [FusionVersions(ensemble) for ensemble in (captured, plain)]
    before, graphs = compute(captured, make_digits(captured, FULL[:3])), graphs_of(captured)
    formed = form(captured, make_digits(captured, FULL[:3]), buffer_set=1)
    count = len(graphs)
    try:
        for each in versions:
            each.update(FusionChange(**change))
        sizes = doublings(1, captured.spec.batching.max_batch_size)
        assert len(graphs) == count + 2 * len(sizes)  # no member's among them
        changed = compute(captured, make_digits(captured, FULL[:3]))
        assert_alike(changed, compute(plain, make_digits(plain, FULL[:3])))
        assert {answer.fusion_version for answer in changed} == {2}
        for answer, first in zip(respond(launch(formed)), before, strict=True):
            assert (answer.prediction == first.prediction).all()
            assert answer.fusion_version == 1
    finally:
        captured.release(formed)
        for each in versions:
            each.roll_back(1)
    count = len(graphs)
    for answer, first in zip(compute(captured, make_digits(captured, FULL[:3])), before, strict=True):
        assert (answer.prediction == first.prediction).all()
        assert answer.fusion_version == 1
    assert len(graphs) == count


def test_a_version_is_captured_while_serving_on_a_prepared_thread_and_on_a_stream_that_no_batch_uses() -> None:
    ensemble = load_warm(DIGITS, CapturingDevice())
    assert isinstance(ensemble.device, CapturingDevice)
    count = len(ensemble.device.graphs)
    assert not any(graph.is_serving for graph in ensemble.device.graphs)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(FusionVersions(ensemble).update, FusionChange(method="maximum")).result()
        assert threads.submit(threading.get_ident).result() in ensemble.device.prepared
    captures = ensemble.device.graphs[count:]
    assert captures
    assert all(graph.is_serving for graph in captures)
    # What the launch thread queued on it meanwhile would be captured, and not be done.
    used = {id(buffers.stream) for buffers in ensemble.fusion.graphs}
    for streams in ensemble.streams.values():
        used |= {id(stream) for stream in (streams.copy, streams.fusion, *streams.members)}
    assert not used & {id(graph.stream) for graph in captures}
    # Buffer sets are in use at the same time, and what cuBLAS keeps is kept by stream.
    assert len({id(graph.stream) for graph in captures}) == len(ensemble.fusion.graphs) == BUFFER_SETS


def test_a_version_whose_capture_breaks_off_is_not_put_to_use() -> None:
    device = CapturingDevice()
    ensemble = load_warm(DIGITS, device)
    before = compute(ensemble, make_digits(ensemble, FULL[:1]))[0]
    device.captures_left = 1
    with pytest.raises(RuntimeError, match="operation not permitted"):
        FusionVersions(ensemble).update(FusionChange(method="maximum"))
    after = compute(ensemble, make_digits(ensemble, FULL[:1]))[0]
    assert after.fusion_version == 1
    assert (after.prediction == before.prediction).all()


def test_a_version_that_cannot_be_captured_runs_eagerly(plain: Ensemble) -> None:
    device = CapturingDevice()
    ensemble = load_warm(DIGITS, device)
    device.refusal = "called a synchronizing CUDA operation"
    FusionVersions(ensemble).update(FusionChange(weights={"vision": 1.0, "language": 1.0}))
    answers = compute(ensemble, make_digits(ensemble, FULL))
    assert ensemble.fusion.graphs == {}
    assert_alike(answers, compute(plain, make_digits(plain, FULL)))
    assert all(member.used_cuda_graph for member in answers[0].members)


SYNC = "called a synchronizing CUDA operation"


@pytest.mark.parametrize(
    ("refusal", "line", "reason"),
    [
        pytest.param(SYNC, "", f"it waits for the device: {SYNC}", id="one that waits for the device"),
        pytest.param("", "cuda_graph = false", "cuda_graph = false in the ensemble's file", id="one that is not to have any"),
    ],
)
def test_a_member_without_graphs_computes_and_says_why(
    tmp_path: Path, plain: Ensemble, refusal: str, line: str, reason: str
) -> None:  # fmt: skip
    folder = copy_digits(tmp_path / "digits", vision=line)
    ensemble = load_warm(folder, CapturingDevice(refusal))
    vision = ensemble.members[0]
    assert vision.no_graph_reason == reason
    assert not any(buffers.graphs for buffers in vision.buffers)
    assert (ensemble.fusion.graphs == {}) == bool(refusal)
    answers = compute(ensemble, make_digits(ensemble, FULL[:3]))
    assert_alike(answers, compute(plain, make_digits(plain, FULL[:3])))
    assert not answers[0].members[0].used_cuda_graph


def test_a_member_whose_capture_breaks_off_is_refused_with_the_remedy() -> None:
    device = CapturingDevice()
    device.captures_left = 3
    with pytest.raises(
        InvalidEnsemble, match=r"^members.vision: capturing it at \d+ samples broke off .*vision.cuda_graph = false"
    ):
        load_warm(DIGITS, device)

"""Batches: the order of work and events on every path, shown on a device that records and dawdles."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.models import Opinion, as_any, chance, load_members, number, write_members
from tests.recording import RecordingDevice, Refused, poison
from twinfer_server.device import CpuDevice, Execution, UnrecordedEvent
from twinfer_server.errors import MemberFailed, MemberLate, TwinferError
from twinfer_server.executor import Batch, Ensemble, make_responses
from twinfer_server.executor.buffers import StagingBuffers
from twinfer_server.fusion import FusionResult
from twinfer_server.types import InferRequest, Policy, Request, Response, State

EXECUTIONS = ["serial", "streams"]
SEEDS = range(8)


class Bench:
    """Two opinions on a recording device that from now on only queues."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.models = {"left": Opinion(), "right": Opinion()}
        self.device = RecordingDevice(seed)
        self.ensemble = load_members(write_members(folder, self.models), device=self.device)
        self.device.take_over()

    def form(self, xs: Sequence[float], execution: Execution, buffer_set: int = 0) -> Batch:
        """Form a batch of a request for each x: the left member gets x, the right one 2x."""
        requests = [make_request(self.ensemble, {"left": x, "right": 2 * x}) for x in xs]
        return self.ensemble.form_batch(requests, buffers(self.ensemble, buffer_set), {}, execution)

    def check(self, batch: Batch, xs: Sequence[float]) -> None:
        assert batch.result is not None
        for x, response in zip(xs, respond(batch, batch.result), strict=True):
            assert isinstance(response, Response)
            assert response.prediction[0] == pytest.approx(chance(x, 2 * x), abs=1e-6)
            assert not response.is_degraded
        self.ensemble.release(batch)


def make_request(ensemble: Ensemble, xs: dict[str, float], policy: Policy = Policy.BEST_EFFORT) -> Request:
    request = InferRequest({name: number(x) for name, x in xs.items()}, arrived_at=0.0)
    return Request(request, policy, None, reply_by=float("inf"), samples=ensemble.processor.prepare(request))


def respond(batch: Batch, fused: FusionResult) -> list[Response | TwinferError]:
    return make_responses(batch, range(len(batch.requests)), fused, 0.0)


def respond_late(batch: Batch, indices: Sequence[int]) -> list[Response | TwinferError]:
    """Answer requests that cannot wait, as the scheduler does."""
    done = batch.done_members
    return make_responses(batch, indices, batch.fuse(indices), 0.0, done)


def buffers(ensemble: Ensemble, buffer_set: int) -> dict[int, StagingBuffers]:
    return {member.index: member.buffers[buffer_set] for member in ensemble.members}


@pytest.fixture(params=EXECUTIONS)
def execution(request: pytest.FixtureRequest) -> Execution:
    return "serial" if request.param == "serial" else "streams"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_order_the_events_allow_the_answers_are_right(tmp_path: Path, execution: Execution, seed: int) -> None:
    bench = Bench(tmp_path, seed)
    batches = [(bench.form(xs, execution, buffer_set), xs) for buffer_set, xs in enumerate([[0.1, -0.2, 0.3], [0.4, 0.5]])]
    for batch, _ in batches:
        batch.launch()
    for batch, _ in reversed(batches):
        batch.completed.wait()
    for batch, xs in batches:
        bench.check(batch, xs)
    assert bench.device.idle_waits == 0


def test_launching_never_waits_for_the_device(bench: Bench, execution: Execution) -> None:
    batch = bench.form([0.1], execution)
    batch.launch()
    assert bench.device.waits == []
    assert bench.device.done == []
    assert batch.is_launched
    assert not batch.completed.is_done()


def test_members_fork_after_their_copy_and_join_before_the_fusion(bench: Bench, execution: Execution) -> None:
    batch = bench.form([0.1], execution)
    batch.launch()
    batch.completed.wait()
    work = [entry.name.rpartition(".")[2].strip("<>") for entry in bench.device.done if entry.what == "submit"]
    assert work.count("lambda") == work.count("_compute") == 2
    assert work[-1] == "_fuse"
    for run in batch.runs:
        events = [as_any(event).tick for event in (run.staged, run.started, run.done, batch.completed)]
        assert events == sorted(events)


def test_under_streams_each_member_has_a_stream_and_under_serial_all_share_one(bench: Bench, execution: Execution) -> None:
    bench.form([0.1], execution).launch()
    streams = {entry.stream for entry in bench.device.asked if entry.what == "submit"}
    assert streams == ({"serial"} if execution == "serial" else {"copy", "left", "right", "fusion"})


def test_one_member_can_end_before_the_other_begins_and_a_late_request_is_fused_from_it(bench: Bench) -> None:
    batch = bench.form([0.1, 0.2], "streams")
    batch.launch()
    bench.device.work_until(batch.runs[1].done, stuck="left")
    (answer,) = respond_late(batch, [1])
    assert isinstance(answer, Response)
    assert [member.state for member in answer.members] == [State.LATE, State.OK]
    assert answer.prediction[0] == pytest.approx(chance(0.4), abs=1e-6)
    assert bench.device.waits == []
    batch.completed.wait()
    bench.check(batch, [0.1, 0.2])


def test_before_any_member_is_done_a_late_request_ends_with_all_the_late_members_names(bench: Bench, execution: Execution) -> None:
    batch = bench.form([0.1], execution)
    batch.launch()
    (error,) = respond_late(batch, [0])
    assert isinstance(error, MemberLate)
    assert "left" in error.text
    assert "right" in error.text


def test_a_member_that_ends_while_a_late_request_is_fused_is_late_all_the_same(bench: Bench) -> None:
    batch = bench.form([0.1], "streams")
    batch.launch()
    bench.device.work_until(batch.runs[1].done, stuck="left")
    done = batch.done_members
    fused = batch.fuse([0])
    batch.runs[0].done.wait()
    (answer,) = make_responses(batch, [0], fused, 0.0, done)
    assert isinstance(answer, Response)
    assert [member.state for member in answer.members] == [State.LATE, State.OK]


@pytest.mark.parametrize("broken", ["left", "right"])
def test_a_member_that_raises_at_launch_loses_its_own_part_only(bench: Bench, execution: Execution, broken: str) -> None:
    bench.models[broken].error = ValueError("no such number")
    batch = bench.form([0.1, 0.2], execution)
    batch.launch()
    batch.completed.wait()
    assert batch.result is not None
    for x, answer in zip([0.1, 0.2], respond(batch, batch.result), strict=True):
        assert isinstance(answer, Response)
        by_name = dict(zip(("left", "right"), answer.members, strict=True))
        other = by_name.pop("left" if broken == "right" else "right")
        assert other.state is State.OK
        assert other.weight == pytest.approx(1)
        assert by_name[broken].state is State.FAILED
        assert isinstance(by_name[broken].error, MemberFailed)
        assert "the member raised ValueError; the server's log has it" in str(by_name[broken].error)
        assert answer.prediction[0] == pytest.approx(chance(x if broken == "right" else 2 * x), abs=1e-6)


def count_operations(folder: Path, execution: Execution) -> int:
    bench = Bench(folder)
    bench.form([0.1], execution).launch()
    return len(bench.device.asked)


@pytest.mark.parametrize("seed", range(3))
def test_wherever_a_launch_breaks_off_nothing_is_released_while_a_stream_still_works(
    tmp_path: Path, execution: Execution, seed: int
) -> None:  # fmt: skip
    operations = count_operations(tmp_path / "whole", execution)
    assert operations > 8
    bench = Bench(tmp_path, seed)
    for refused in range(operations):
        bench.device.refuse_at = refused
        batch = bench.form([0.1, 0.2], execution)
        with pytest.raises(Refused) as refusal:
            batch.launch()
        batch.break_off(refusal.value)
        assert not bench.device.is_working(), f"work is left behind after operation {refused} was refused"
        for x, answer in zip([0.1, 0.2], respond(batch, batch.fuse(range(len(batch.requests)))), strict=True):
            check_broken_off(x, answer)
        after = bench.form([0.3], execution)
        after.launch()
        after.completed.wait()
        bench.check(after, [0.3])


def check_broken_off(x: float, answer: Response | TwinferError) -> None:
    """A member that was computed counts, and one that was not has failed by name."""
    if isinstance(answer, TwinferError):
        assert "the batch broke off" in answer.text
        return
    states = [member.state for member in answer.members]
    assert set(states) <= {State.OK, State.FAILED}
    there = [logit for logit, state in zip((x, 2 * x), states, strict=True) if state is State.OK]
    assert answer.prediction[0] == pytest.approx(chance(*there), abs=1e-6)


def test_buffers_of_a_member_that_is_done_beside_a_stuck_one_can_be_released_and_poisoned(bench: Bench) -> None:
    stuck = bench.form([0.1, 0.2], "streams")
    stuck.launch()
    bench.device.work_until(stuck.runs[1].done, stuck="left")
    assert [run.member.name for run in stuck.keep_done_outputs()] == ["right"]
    assert stuck.keep_done_outputs() == []
    poison(stuck.runs[1].buffers)
    # Another batch takes the buffers, while the first one is not even half done.
    again = make_request(bench.ensemble, {"right": -3.0})
    other = bench.ensemble.form_batch([again, again], {1: stuck.runs[1].buffers}, {}, "streams")
    other.launch()
    bench.device.work_until(other.completed, stuck="left")
    assert not stuck.completed.is_done()
    stuck.completed.wait()
    assert stuck.result is None  # what the device fused may hold the other batch's numbers
    for x, answer in zip([0.1, 0.2], respond(stuck, stuck.fuse([0, 1])), strict=True):
        assert isinstance(answer, Response)
        assert answer.prediction[0] == pytest.approx(chance(x, 2 * x), abs=1e-6)
        assert not answer.is_degraded


def test_a_batch_does_not_wait_behind_one_whose_member_is_stuck(bench: Bench) -> None:
    stuck = bench.form([0.1], "streams")
    stuck.launch()
    bench.device.work_until(stuck.runs[1].done, stuck="left")
    alone = make_request(bench.ensemble, {"right": 0.5})
    other = bench.ensemble.form_batch([alone], {1: bench.ensemble.members[1].buffers[1]}, {}, "streams")
    other.launch()
    bench.device.work_until(other.completed, stuck="left")
    assert not stuck.runs[0].done.is_done()


@pytest.mark.parametrize("stuck", ["left", "right"])
def test_a_serial_batch_stuck_on_its_launch_thread_is_moved(tmp_path: Path, stuck: str) -> None:
    models = {"left": Opinion(), "right": Opinion()}
    ensemble = load_members(write_members(tmp_path, models))
    batch = ensemble.form_batch([make_request(ensemble, {"left": 0.1, "right": 0.2})], buffers(ensemble, 0), {}, "serial")

    def launch() -> None:
        with torch.inference_mode():
            batch.launch()

    with models[stuck].held():
        launcher = threading.Thread(target=launch)
        launcher.start()
        models[stuck].entered.wait()
        batch.move(ensemble.member_streams)
        batch.move(ensemble.member_streams)  # twice does no harm
        other = next(run for run in batch.runs if run.member.name != stuck)
        other.done.wait()
        (answer,) = respond_late(batch, [0])
        assert isinstance(answer, Response)
        assert answer.prediction[0] == pytest.approx(chance(0.2 if stuck == "left" else 0.1), abs=1e-6)
        assert not batch.completed.is_done()
    launcher.join()
    assert batch.result is not None
    (answer,) = respond(batch, batch.result)
    assert isinstance(answer, Response)
    assert answer.prediction[0] == pytest.approx(chance(0.1, 0.2), abs=1e-6)
    for model in models.values():
        assert (len(model.batches), model.most_at_once) == (1, 1)
    ensemble.close()


def test_a_fusion_that_raises_leaves_it_to_the_host_to_fuse(bench: Bench, execution: Execution) -> None:
    class Broken(torch.nn.Module):
        def forward(self, *arguments: object) -> FusionResult:
            raise RuntimeError("out of memory")

    batch = bench.form([0.1], execution)
    object.__setattr__(batch.version, "fusion", Broken())
    batch.launch()
    batch.completed.wait()
    assert batch.result is None
    (answer,) = respond(batch, batch.fuse(range(len(batch.requests))))
    assert isinstance(answer, Response)
    assert answer.prediction[0] == pytest.approx(chance(0.1, 0.2), abs=1e-6)


def test_buffers_are_not_released_once_a_completion_reads_them(bench: Bench) -> None:
    batch = bench.form([0.1], "streams")
    batch.launch()
    bench.device.work_until(batch.runs[1].done, stuck="left")
    with batch.outputs_lock:  # a late request is being read
        assert batch.keep_done_outputs() == []
    batch.is_completing = True
    assert batch.keep_done_outputs() == []


def test_a_stream_refuses_to_wait_for_an_event_that_was_never_recorded() -> None:
    device = CpuDevice(streams=1)
    for stream in (device.launch_stream("serial"), device.stream("one")):
        with pytest.raises(UnrecordedEvent):
            stream.wait_event(device.event())
        stream.close()

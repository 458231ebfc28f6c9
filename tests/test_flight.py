"""Flights: the order of work and events on every path, shown on a device that records and dawdles."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.models import Opinion, chance, load_members, number, write_members
from tests.recording import RecordingDevice, Refused
from twinfer_server.errors import MemberFailed, MemberLate, TwinferError
from twinfer_server.executor import Ensemble, Flight, Slot, answer_rows
from twinfer_server.fusion import Fused
from twinfer_server.types import InferRequest, Policy, Request, Response, State

PLANS = ["serial", "streams"]
SEEDS = range(8)


class Hangar:
    """Two opinions on a recording device that from now on only queues."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.models = {"left": Opinion(), "right": Opinion()}
        self.device = RecordingDevice(seed)
        self.ensemble = load_members(write_members(folder, self.models), device=self.device)
        self.device.take_over()

    def board(self, xs: Sequence[float], execution: str, slot: int = 0) -> Flight:
        """Board a row for each x: the left member gets x, the right one 2x."""
        rows = [make_row(self.ensemble, {"left": x, "right": 2 * x}) for x in xs]
        return self.ensemble.board(rows, slots(self.ensemble, slot), {}, execution)

    def check(self, flight: Flight, xs: Sequence[float]) -> None:
        assert flight.fused is not None
        for x, answer in zip(xs, answer_rows(flight, flight.rows, flight.fused, 0.0), strict=True):
            assert isinstance(answer, Response)
            assert answer.fused[0] == pytest.approx(chance(x, 2 * x), abs=1e-6)
            assert not answer.is_degraded


def make_row(ensemble: Ensemble, xs: dict[str, float], policy: Policy = Policy.BEST_EFFORT) -> Request:
    request = InferRequest({name: number(x) for name, x in xs.items()}, arrived_at=0.0)
    return Request(request, policy, None, reply_by=float("inf"), samples=ensemble.prepare(request))


def answer_late(flight: Flight, rows: Sequence[Request]) -> list[Response | TwinferError]:
    """Answer rows that cannot wait, as the batcher does."""
    done = flight.done_members
    return answer_rows(flight, rows, flight.fuse_now(rows), 0.0, done)


def slots(ensemble: Ensemble, slot: int) -> dict[int, Slot]:
    return {member.index: member.slots[slot] for member in ensemble.members}


@pytest.fixture(params=PLANS)
def execution(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hangar(tmp_path: Path) -> Hangar:
    return Hangar(tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_order_the_events_allow_the_answers_are_right(tmp_path: Path, execution: str, seed: int) -> None:
    hangar = Hangar(tmp_path, seed)
    flights = [(hangar.board(xs, execution, slot), xs) for slot, xs in enumerate([[0.1, -0.2, 0.3], [0.4, 0.5]])]
    for flight, _ in flights:
        flight.launch()
    for flight, _ in reversed(flights):
        flight.landed.wait()
    for flight, xs in flights:
        hangar.check(flight, xs)


def test_launching_never_waits_for_the_device(hangar: Hangar, execution: str) -> None:
    flight = hangar.board([0.1], execution)
    flight.launch()
    assert hangar.device.waits == []
    assert hangar.device.done == []
    assert flight.is_launched
    assert not flight.landed.is_done()


def test_members_fork_after_their_copy_and_join_before_the_fusion(hangar: Hangar, execution: str) -> None:
    flight = hangar.board([0.1], execution)
    flight.launch()
    flight.landed.wait()
    work = [entry.name.rpartition(".")[2].strip("<>") for entry in hangar.device.done if entry.what == "run"]
    assert work.count("lambda") == work.count("_compute") == 2
    assert work[-1] == "_fuse"
    for run in flight.runs:
        assert run.staged.done_at < run.started.done_at < run.done.done_at < flight.landed.done_at  # type: ignore[operator]


def test_under_lanes_each_member_has_a_lane_and_under_serial_all_share_one(hangar: Hangar, execution: str) -> None:
    hangar.board([0.1], execution).launch()
    lanes = {entry.lane for entry in hangar.device.asked if entry.what == "run"}
    assert lanes == ({"serial"} if execution == "serial" else {"copy", "left", "right", "fusion"})


def test_one_member_can_end_before_the_other_begins_and_a_late_row_is_fused_from_it(hangar: Hangar) -> None:
    flight = hangar.board([0.1, 0.2], "streams")
    flight.launch()
    hangar.device.work_until(flight.runs[1].done, stuck="left")
    (answer,) = answer_late(flight, flight.rows[1:])
    assert isinstance(answer, Response)
    assert [member.state for member in answer.members] == [State.LATE, State.OK]
    assert answer.fused[0] == pytest.approx(chance(0.4), abs=1e-6)
    assert hangar.device.waits == []
    flight.landed.wait()
    hangar.check(flight, [0.1, 0.2])


def test_before_anybody_is_done_a_late_row_ends_with_all_the_late_members_names(hangar: Hangar, execution: str) -> None:
    flight = hangar.board([0.1], execution)
    flight.launch()
    (error,) = answer_late(flight, flight.rows)
    assert isinstance(error, MemberLate)
    assert "left" in error.text
    assert "right" in error.text


def test_a_member_that_ends_while_a_late_row_is_fused_is_late_all_the_same(hangar: Hangar) -> None:
    flight = hangar.board([0.1], "streams")
    flight.launch()
    hangar.device.work_until(flight.runs[1].done, stuck="left")
    done = flight.done_members
    fused = flight.fuse_now(flight.rows)
    flight.runs[0].done.wait()
    (answer,) = answer_rows(flight, flight.rows, fused, 0.0, done)
    assert isinstance(answer, Response)
    assert [member.state for member in answer.members] == [State.LATE, State.OK]


@pytest.mark.parametrize("broken", ["left", "right"])
def test_a_member_that_raises_at_launch_loses_its_own_part_only(hangar: Hangar, execution: str, broken: str) -> None:
    hangar.models[broken].error = ValueError("no such number")
    flight = hangar.board([0.1, 0.2], execution)
    flight.launch()
    flight.landed.wait()
    assert flight.fused is not None
    for x, answer in zip([0.1, 0.2], answer_rows(flight, flight.rows, flight.fused, 0.0), strict=True):
        assert isinstance(answer, Response)
        by_name = dict(zip(("left", "right"), answer.members, strict=True))
        other = by_name.pop("left" if broken == "right" else "right")
        assert other.state is State.OK
        assert other.weight == pytest.approx(1)
        assert by_name[broken].state is State.FAILED
        assert isinstance(by_name[broken].error, MemberFailed)
        assert "ValueError: no such number" in str(by_name[broken].error)
        assert answer.fused[0] == pytest.approx(chance(x if broken == "right" else 2 * x), abs=1e-6)


def count_operations(folder: Path, execution: str) -> int:
    hangar = Hangar(folder)
    hangar.board([0.1], execution).launch()
    return len(hangar.device.asked)


@pytest.mark.parametrize("seed", range(3))
def test_wherever_a_launch_breaks_off_nothing_is_freed_while_a_lane_still_works(tmp_path: Path, execution: str, seed: int) -> None:
    operations = count_operations(tmp_path / "whole", execution)
    assert operations > 8
    hangar = Hangar(tmp_path, seed)
    for refused in range(operations):
        hangar.device.refuse_at = refused
        flight = hangar.board([0.1, 0.2], execution)
        with pytest.raises(Refused) as refusal:
            flight.launch()
        flight.break_off(refusal.value)
        assert not hangar.device.is_working(), f"work is left behind after operation {refused} was refused"
        for x, answer in zip([0.1, 0.2], answer_rows(flight, flight.rows, flight.fuse_now(flight.rows), 0.0), strict=True):
            check_broken_off(x, answer)
        after = hangar.board([0.3], execution)
        after.launch()
        after.landed.wait()
        hangar.check(after, [0.3])


def check_broken_off(x: float, answer: Response | TwinferError) -> None:
    """Whoever was computed counts, and whoever was not has failed by name."""
    if isinstance(answer, TwinferError):
        assert "the flight broke off" in answer.text
        return
    states = [member.state for member in answer.members]
    assert set(states) <= {State.OK, State.FAILED}
    there = [logit for logit, state in zip((x, 2 * x), states, strict=True) if state is State.OK]
    assert answer.fused[0] == pytest.approx(chance(*there), abs=1e-6)


def test_a_member_that_is_done_beside_a_stuck_one_can_give_its_slot_back(hangar: Hangar) -> None:
    stuck = hangar.board([0.1, 0.2], "streams")
    stuck.launch()
    hangar.device.work_until(stuck.runs[1].done, stuck="left")
    assert [run.member.name for run in stuck.keep_outputs()] == ["right"]
    assert stuck.keep_outputs() == []
    # Another flight takes the slot, while the first one is not even half done.
    row = make_row(hangar.ensemble, {"right": -3.0})
    other = hangar.ensemble.board([row, row], {1: stuck.runs[1].slot}, {}, "streams")
    other.launch()
    hangar.device.work_until(other.landed, stuck="left")
    assert not stuck.landed.is_done()
    stuck.landed.wait()
    assert stuck.fused is None  # what the device fused may hold the other flight's numbers
    for x, answer in zip([0.1, 0.2], answer_rows(stuck, stuck.rows, stuck.fuse_now(stuck.rows), 0.0), strict=True):
        assert isinstance(answer, Response)
        assert answer.fused[0] == pytest.approx(chance(x, 2 * x), abs=1e-6)
        assert not answer.is_degraded


def test_a_flight_does_not_land_behind_one_whose_member_is_stuck(hangar: Hangar) -> None:
    stuck = hangar.board([0.1], "streams")
    stuck.launch()
    hangar.device.work_until(stuck.runs[1].done, stuck="left")
    row = make_row(hangar.ensemble, {"right": 0.5})
    other = hangar.ensemble.board([row], {1: hangar.ensemble.members[1].slots[1]}, {}, "streams")
    other.launch()
    hangar.device.work_until(other.landed, stuck="left")
    assert not stuck.runs[0].done.is_done()


@pytest.mark.parametrize("stuck", ["left", "right"])
def test_a_serial_flight_stuck_on_its_launch_thread_is_rescued(tmp_path: Path, stuck: str) -> None:
    models = {"left": Opinion(), "right": Opinion()}
    ensemble = load_members(write_members(tmp_path, models))
    flight = ensemble.board([make_row(ensemble, {"left": 0.1, "right": 0.2})], slots(ensemble, 0), {}, "serial")

    def launch() -> None:
        with torch.inference_mode():
            flight.launch()

    with models[stuck].held():
        launcher = threading.Thread(target=launch)
        launcher.start()
        models[stuck].entered.wait()
        flight.rescue(ensemble.plans["streams"])
        flight.rescue(ensemble.plans["streams"])  # twice does no harm
        other = next(run for run in flight.runs if run.member.name != stuck)
        other.done.wait()
        (answer,) = answer_late(flight, flight.rows)
        assert isinstance(answer, Response)
        assert answer.fused[0] == pytest.approx(chance(0.2 if stuck == "left" else 0.1), abs=1e-6)
        assert not flight.landed.is_done()
    launcher.join()
    assert flight.fused is not None
    (answer,) = answer_rows(flight, flight.rows, flight.fused, 0.0)
    assert isinstance(answer, Response)
    assert answer.fused[0] == pytest.approx(chance(0.1, 0.2), abs=1e-6)
    for model in models.values():
        assert (len(model.batches), model.most_at_once) == (1, 1)
    ensemble.close()


def test_a_fusion_that_raises_leaves_it_to_the_host_to_fuse(hangar: Hangar, execution: str) -> None:
    class Broken(torch.nn.Module):
        def forward(self, *arguments: object) -> Fused:
            raise RuntimeError("out of memory")

    flight = hangar.board([0.1], execution)
    object.__setattr__(flight.crew.version, "fusion", Broken())
    flight.launch()
    flight.landed.wait()
    assert flight.fused is None
    (answer,) = answer_rows(flight, flight.rows, flight.fuse_now(flight.rows), 0.0)
    assert isinstance(answer, Response)
    assert answer.fused[0] == pytest.approx(chance(0.1, 0.2), abs=1e-6)

"""Captures: what is replayed answers like what is computed, whoever is on board; shown on a device that replays in Python."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.capturing import CapturingDevice, ReplayedWork
from tests.servers import DIGITS
from twinfer_server.demo import HeldOutRow, read_rows
from twinfer_server.device import CpuDevice, Device
from twinfer_server.engine.landing import land
from twinfer_server.errors import InvalidEnsemble, NothingToFuse
from twinfer_server.executor import Ensemble, FusionChange, FusionVersions, answer_rows, fly_blank, load_ensemble, warm_up
from twinfer_server.executor.bucket import Bucket
from twinfer_server.executor.warmup import _WarmUp
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.types import InferRequest, Policy, RawInput, Request, Response, State

HELD_OUT = read_rows(DIGITS)


def load(device: Device, folder: Path = DIGITS) -> Ensemble:
    ensemble = load_ensemble(folder, device, Trust.read(False, ()), InputLimits())
    warm_up(ensemble, None, lambda done, total: None)
    return ensemble


def make_row(ensemble: Ensemble, held_out: HeldOutRow, inputs: str) -> Request:
    given: dict[str, RawInput] = {"image": held_out.image.read_bytes(), "text": held_out.text}
    request = InferRequest({name: given[name] for name in inputs.split("+")}, arrived_at=0.0)
    return Request(request, Policy.BEST_EFFORT, None, float("inf"), samples=ensemble.prepare(request))


def fly(ensemble: Ensemble, mix: Sequence[str], execution: str, slot: int = 0) -> list[Response]:
    rows = [make_row(ensemble, held_out, inputs) for held_out, inputs in zip(HELD_OUT, mix, strict=False)]
    slots = {member.index: member.slots[slot] for member in ensemble.members}
    with torch.inference_mode():
        flight = ensemble.board(rows, slots, {}, execution)
        flight.launch()
        flight.landed.wait()
        assert flight.execution.name == execution
        assert flight.fused is not None
        answers = answer_rows(flight, rows, flight.fused, 0.0)
    assert all(isinstance(answer, Response) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Response)]


@pytest.fixture(scope="module")
def captured() -> Ensemble:
    ensemble = load(CapturingDevice())
    # Whichever plan was faster here, keep a whole-flight capture for each slot of each bucket, as if it had been `graph`.
    warmup = _WarmUp(ensemble)
    assert ensemble.times is not None
    with torch.inference_mode():
        for times in ensemble.times.measured:
            warmup._keep_capture(times.bucket, "graph")
    return ensemble


@pytest.fixture(scope="module")
def plain() -> Ensemble:
    return load(CpuDevice(lanes=2))


MIXES = {
    "one row": ["image+text"],
    "three rows in a bucket of four": ["image+text"] * 3,
    "a full bucket": ["image+text"] * 8,
    "a text-only row between others": ["image+text", "text", "image+text"],
    "rows that share no input": ["text", "image", "text", "image", "image"],
}


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
        text.slots[0].copy_in(bucket)
    assert copies.are_contiguous == [True] * len(text.stagings)


@pytest.mark.parametrize("execution", ["serial", "streams", "graph"])
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_a_replayed_flight_answers_like_a_computed_one(
    captured: Ensemble, plain: Ensemble, mix: list[str], slot: int, execution: str
) -> None:
    fly(captured, ["image+text"] * 8, execution, slot)  # leaves rows behind in the padding
    for replayed, computed in zip(fly(captured, mix, execution, slot), fly(plain, mix, "serial"), strict=True):
        assert replayed.fused == pytest.approx(computed.fused, abs=1e-5)
        assert [member.state for member in replayed.members] == [member.state for member in computed.members]
        assert [member.weight for member in replayed.members] == pytest.approx([member.weight for member in computed.members])


def test_an_answer_is_not_changed_by_the_flight_that_reuses_its_buffers(captured: Ensemble) -> None:
    first = fly(captured, ["image+text"], "graph")[0]
    before = first.fused.copy()
    fly(captured, ["text", "image"] * 2, "graph")
    assert (first.fused == before).all()


def test_a_flight_that_is_captured_already_is_not_captured_again(captured: Ensemble) -> None:
    assert isinstance(captured.device, CapturingDevice)
    assert captured.times is not None
    before = len(captured.device.graphs)
    with torch.inference_mode():
        for times in captured.times.measured:
            _WarmUp(captured)._keep_capture(times.bucket, "graph")
    assert len(captured.device.graphs) == before


def test_a_flight_without_one_member_is_not_flown_as_a_whole(captured: Ensemble) -> None:
    rows = [make_row(captured, HELD_OUT[0], "text")]
    flight = captured.board(rows, {1: captured.members[1].slots[0]}, {}, "graph")
    assert flight.execution.name == "streams"


def test_a_late_row_of_a_captured_flight_is_fused_from_the_members_whose_ticket_has_come(captured: Ensemble) -> None:
    rows = [make_row(captured, HELD_OUT[0], "image+text")]
    slots = {member.index: member.slots[0] for member in captured.members}
    with torch.inference_mode():
        flight = captured.board(rows, slots, {}, "graph")
        flight.launch()
        assert all(run.has_output for run in flight.runs)
        flight.runs[1].done._ticket += 1  # type: ignore[attr-defined]  # as if the output had not come yet
        [answer] = answer_rows(flight, rows, flight.fuse_now(rows), 0.0)
    assert isinstance(answer, Response)
    assert [member.state for member in answer.members] == [State.OK, State.LATE]
    assert [member.weight for member in answer.members] == [1.0, 0.0]


def test_plans_are_compared_by_the_whole_flight_and_members_by_what_lies_between_its_copies(captured: Ensemble) -> None:
    with torch.inference_mode():
        for execution in ("serial", "streams"):
            trial = fly_blank(captured, execution, Bucket(8, 32), (0, 1))
            members = [seconds for seconds in trial.member_seconds.values() if seconds is not None]
            assert sum(members) <= trial.wall_seconds < trial.flight_seconds
    assert captured.times is not None
    for times in captured.times.measured:
        assert times.join_seconds < times.plan_seconds[times.execution]


def test_the_time_of_a_graph_begins_when_the_host_has_written_the_rows(captured: Ensemble) -> None:
    rows = [make_row(captured, held_out, "image+text") for held_out in HELD_OUT[:8]]
    flight = captured.board(rows, {member.index: member.slots[0] for member in captured.members}, {}, "graph")
    with torch.inference_mode():
        flight.launch()
    assert flight.capture is not None
    assert flight.capture.written.seconds_since(flight.started) > 0
    assert flight.join_seconds == flight.landed.seconds_since(flight.capture.written)


def test_between_the_last_ticket_and_the_landing_a_captured_flight_has_no_times(captured: Ensemble) -> None:
    rows = [make_row(captured, HELD_OUT[0], "image+text")]
    flight = captured.board(rows, {member.index: member.slots[0] for member in captured.members}, {}, "graph")
    with torch.inference_mode():
        flight.launch()
        flight.landed = captured.device.event()  # as if the landing had not come yet
        assert flight.join_seconds is None
        [answer] = answer_rows(flight, rows, flight.fuse_now(rows), 0.0)
    assert isinstance(answer, Response)
    assert answer.timings.overlap_ratio is None
    assert [member.state for member in answer.members] == [State.OK, State.OK]


def test_a_captured_flight_that_breaks_off_does_not_answer_with_the_one_before(captured: Ensemble) -> None:
    fly(captured, ["image+text"], "graph")
    rows = [make_row(captured, HELD_OUT[1], "image+text")]
    flight = captured.board(rows, {member.index: member.slots[0] for member in captured.members}, {}, "graph")
    assert flight.capture is not None
    graph = flight.capture._graph
    assert isinstance(graph, ReplayedWork)
    graph.is_refused = True
    try:
        with torch.inference_mode(), pytest.raises(RuntimeError) as refusal:
            flight.launch()
        flight.break_off(refusal.value)
    finally:
        graph.is_refused = False
    [answer] = land(flight, captured, 0.0).answers
    assert isinstance(answer, NothingToFuse)
    for member in captured.members:
        assert f"{member.name}: the flight broke off: RuntimeError: the graph could not be launched" in answer.text
    assert fly(captured, ["image+text"], "graph")


@contextmanager
def nobody_in_the_air() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    "change", [{"weights": {"vision": 0.9, "language": 0.1}}, {"method": "maximum"}], ids=["weights", "method"]
)
def test_captured_flights_are_fused_by_the_version_that_they_board_with(
    change: dict[str, Any], captured: Ensemble, plain: Ensemble
) -> None:
    updates = {ensemble: FusionVersions(ensemble, nobody_in_the_air) for ensemble in (captured, plain)}
    before = fly(captured, ["image+text"] * 3, "graph")
    try:
        for versions in updates.values():
            versions.update(FusionChange(**change))
        for replayed, computed in zip(
            fly(captured, ["image+text"] * 3, "graph"), fly(plain, ["image+text"] * 3, "serial"), strict=True
        ):
            assert replayed.fused == pytest.approx(computed.fused, abs=1e-5)
            assert replayed.fusion_version == 2
    finally:
        for versions in updates.values():
            versions.roll_back(1)
    for replayed, computed in zip(fly(captured, ["image+text"] * 3, "graph"), before, strict=True):
        assert (replayed.fused == computed.fused).all()
        assert replayed.fusion_version == 1


def test_an_earlier_version_is_captured_by_a_thread_that_is_set_up_for_it(captured: Ensemble) -> None:
    assert isinstance(captured.device, CapturingDevice)
    versions = FusionVersions(captured, nobody_in_the_air)
    versions.update(FusionChange(method="maximum"))
    with ThreadPoolExecutor(1) as threads:
        threads.submit(versions.roll_back, 1).result()
        assert threads.submit(threading.get_ident).result() in captured.device.prepared


def test_a_version_whose_flights_cannot_be_captured_is_not_put_to_use(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DIGITS, tmp_path / "digits", ignore=shutil.ignore_patterns("heldout", "fit", "*.py")))
    spec = folder / "ensemble.toml"
    spec.write_text('execution = "graph"\n' + spec.read_text(encoding="utf-8"), encoding="utf-8")
    device = CapturingDevice()
    ensemble = load(device, folder)
    before = fly(ensemble, ["image+text"], "graph")[0]
    device.captures_left = 1
    with pytest.raises(InvalidEnsemble, match="capturing whole flights broke off"):
        FusionVersions(ensemble, nobody_in_the_air).update(FusionChange(method="maximum"))
    after = fly(ensemble, ["image+text"], "streams")[0]
    assert after.fusion_version == 1
    assert after.fused == pytest.approx(before.fused, abs=1e-6)
    assert not ensemble.flight_captures, "one of them fuses by the version that is not in use"


def test_a_member_that_waits_for_the_device_runs_uncaptured_and_says_why() -> None:
    ensemble = load(CapturingDevice(refusal="called a synchronizing CUDA operation"))
    assert {member.why_not_captured for member in ensemble.members} == {
        "it waits for the device: called a synchronizing CUDA operation"
    }
    assert not ensemble.flight_captures
    assert ensemble.times is not None
    assert {execution for times in ensemble.times.measured for execution in times.plan_seconds} == {"serial", "streams"}
    assert fly(ensemble, ["image+text"], "streams")[0].fused.shape == (10,)

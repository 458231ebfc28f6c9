"""Load: calls at their times, latency from when a call was to begin, failures by reason, answers that must agree."""

import asyncio
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import DigitsServer
from tests.gated import HELD, Gate, row, tensor, write_gated
from tests.servers import running, write_ensemble
from twinfer import TwinferError, make_request
from twinfer.load import Agreement, Load, Measurement, Point, Tally, run
from twinfer.load.loops import poisson, run_closed, run_open
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import ensemble_service_pb2_grpc

WAYS: dict[str, dict[str, Any]] = {"Infer": {}, "InferStream": {"is_streamed": True}, "BatchInfer": {"batch": 3}}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the same ensemble, without a gate."""
    with running(write_gated(tmp_path_factory.mktemp("open") / "gated"), trust_code=True) as server:
        yield server.address


def run_at(load: Load, arrivals: Iterable[float]) -> Tally:
    tally = Tally()
    asyncio.run(run_open(load, arrivals, tally))
    return tally


def latencies(tally: Tally) -> list[float]:
    """In seconds, longest first; each at most 0.1 % too long."""
    found = [[item.value_iterated_to / 1e6] * item.count_at_value_iterated_to for item in tally.latencies.get_recorded_iterator()]
    return sorted(itertools.chain(*found), reverse=True)


# --- when calls begin -------------------------------------------------------------------------------------------------


def test_arrivals_are_random_and_of_the_rate_that_was_asked_for() -> None:
    times = list(poisson(500.0, 20.0, seed=3))
    gaps = np.diff(times)
    assert times == sorted(times)
    assert 0.0 < times[0] < times[-1] < 20.0
    assert len(times) == pytest.approx(10_000, rel=0.05)  # 5 standard deviations
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as exponential ones have it
    assert times == list(poisson(500.0, 20.0, seed=3))
    assert times != list(poisson(500.0, 20.0, seed=4))


@pytest.mark.parametrize("way", WAYS)
def test_every_arrival_of_the_schedule_is_answered_once(digits_server: DigitsServer, way: str) -> None:
    requests = [make_request({"image": one.image, "text": one.text}) for one in digits_server.rows[:5]]
    load = Load(digits_server.address, requests, seconds=0.5, agreement=Agreement(0.01), **WAYS[way])
    times = list(poisson(100.0, 0.5, seed=1))
    tally = run_at(load, times)
    assert (tally.answered, tally.failed, tally.wrong, tally.not_sent) == (len(times) * load.batch, 0, 0, 0)
    assert tally.is_clean


def test_arrivals_of_the_warm_up_are_sent_and_not_counted(address: str) -> None:
    load = Load(address, [row()], seconds=0.1, warm_up_seconds=0.1, agreement=Agreement(0.0))
    tally = run_at(load, [0.0, 0.01, 0.02, 0.15])
    assert tally.answered == 1


def test_calls_do_not_wait_for_one_another_and_each_counts_from_its_own_time(folder: Path) -> None:
    gate, times = Gate(folder), [0.0, 0.05, 0.1, 0.2]

    def arrivals() -> Iterator[float]:
        yield from times
        gate.open()  # nobody is answered before the last call was begun

    with running(folder, trust_code=True) as server:
        tally = run_at(Load(server.address, [row(HELD)], seconds=1.0), arrivals())
    assert tally.answered == 4
    assert all(latency >= times[-1] - time for latency, time in zip(latencies(tally), times, strict=True))


def test_a_call_that_begins_late_counts_from_when_it_was_to_begin(address: str) -> None:
    # As if this side had done something else for the first five seconds.
    load = Load(address, [row()], seconds=6.0, warm_up_seconds=-5.0)
    tally = run_at(load, [-5.0, -3.0, -1.0])
    assert [math.floor(latency) for latency in latencies(tally)] == [5, 3, 1]
    assert 3_000 <= tally.begun_late_ms < 4_000
    assert "this client is late: calls began 3" in tally.warnings()[0]


def test_arrivals_beyond_the_bound_are_counted_and_said(folder: Path) -> None:
    gate = Gate(folder)

    def arrivals() -> Iterator[float]:
        yield from itertools.repeat(0.0, 10)
        gate.open()

    with running(folder, trust_code=True) as server:
        tally = run_at(Load(server.address, [row(HELD)], seconds=0.2, max_in_flight=3), arrivals())
    assert (tally.answered, tally.not_sent, tally.is_clean) == (3, 7, False)
    assert any("7 arrivals were not sent" in warning for warning in tally.warnings())


@pytest.mark.parametrize("way", WAYS)
def test_a_closed_loop_has_as_many_calls_under_way_as_it_was_told(folder: Path, way: str) -> None:
    gate = Gate(folder)

    class OpensTheGate(Tally):
        """Lets the rows pass when the time is over, which is when the CPU's share of it is noted."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "cpu_seconds" and value:
                gate.open()

    tally = OpensTheGate()
    with running(folder, trust_code=True) as server:
        asyncio.run(run_closed(Load(server.address, [row(HELD)], seconds=0.1, **WAYS[way]), 3, tally))
    assert (tally.answered, tally.in_time, tally.rate) == (3 * WAYS[way].get("batch", 1), 0, 0.0)


def test_a_call_of_a_closed_loop_begins_when_another_has_ended(address: str) -> None:
    tally = Tally()
    asyncio.run(run_closed(Load(address, [row()], seconds=0.2), 1, tally))
    assert tally.batch_size() == 1.0
    assert tally.answered - tally.in_time in (0, 1)
    assert sum(latencies(tally)[1:]) <= 0.2 * 1.005
    assert tally.rate == pytest.approx(tally.in_time / 0.2)


def test_points_are_measured_in_turn_and_their_repeats_put_together(digits_server: DigitsServer) -> None:
    begun: list[Point] = []
    measurements: list[Measurement] = []
    points = [Point("concurrency", 2), Point("rate", 50)]
    load = Load(digits_server.address, [make_request({"text": "three"})], seconds=0.2)
    run(load, points, 2, measurements, lambda point, tally: begun.append(point))
    assert begun == points * 2
    assert [one.point for one in measurements] == points
    assert all(one.is_complete and len(one.rates) == 2 for one in measurements)
    assert all(one.tally.rate == pytest.approx(sum(one.rates) / 2) for one in measurements)
    arrivals = [len(list(poisson(50.0, 0.2, seed))) for seed in (0, 1)]
    assert measurements[1].tally.answered == sum(arrivals)


# --- what came of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_failures_are_counted_by_their_reason(address: str, way: str) -> None:
    unknown = pb.InferRequest(inputs={"picture": pb.Input(text="no input of this name")})
    short = pb.InferRequest(inputs={"numbers": pb.Input(tensor=tensor([1.0]))})
    load = Load(address, [row(), unknown, short], seconds=0.5, **WAYS[way])
    tally = run_at(load, [0.0] * (12 // load.batch))
    assert tally.answered == 4
    assert tally.errors == {"UNKNOWN_INPUT": 4, "INVALID_INPUT": 4}
    assert "'picture'" in tally.examples["UNKNOWN_INPUT"]
    assert not tally.is_clean


@pytest.mark.parametrize("way", WAYS)
def test_where_nobody_listens_the_code_is_the_reason(way: str) -> None:
    load = Load("127.0.0.1:1", [row()], seconds=0.1, **WAYS[way])
    tally = run_at(load, [0.0, 0.05])
    assert tally.errors == {"UNAVAILABLE": 2 * load.batch}
    assert tally.milliseconds() == {}
    json.dumps(tally.figures(), allow_nan=False)


class Hangs(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """Takes rows and answers none; hangs up on those whose id is odd."""

    def InferStream(self, request_iterator: Iterator[pb.InferStreamRequest], context: grpc.ServicerContext) -> Any:
        for request in request_iterator:
            if int(request.request.request_id) % 2:
                return
        yield from ()


@pytest.fixture
def hangs() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(Hangs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_stream_that_does_not_answer_is_given_up_and_one_that_ends_is_opened_again(hangs: str) -> None:
    tally = run_at(Load(hangs, [row()], seconds=4.0, timeout=0.8, is_streamed=True, max_in_flight=1), [0.0, 1.2, 1.6, 2.8])
    assert tally.errors == {"DEADLINE": 2, "UNAVAILABLE": 2}


MOODY = """
    name = "moody"
    version = 1
    task = "classification"
    policy = "best_effort"
    [members.moody]
    model = "python:models.py:Moody"
    [members.moody.input.numbers]
    kind = "tensor"
    dtype = "float32"
    shape = [3]
    [members.steady]
    model = "python:models.py:Steady"
    [members.steady.input.numbers]
    kind = "tensor"
    dtype = "float32"
    shape = [3]
    [fusion]
    method = "weighted_mean"
"""
MODELS = """
    from pathlib import Path

    import torch


    class Moody(torch.nn.Module):
        def forward(self, numbers):
            if bool((numbers[:, 0] == 5.0).any()):
                raise RuntimeError("it does not like fives")
            return numbers.flip(1) if (Path(__file__).parent / "mood").exists() else numbers


    class Steady(torch.nn.Module):
        def forward(self, numbers):
            return numbers
"""


def test_answers_that_differ_from_the_first_are_wrong(tmp_path: Path) -> None:
    folder = write_ensemble(tmp_path / "moody", MOODY, {"models.py": MODELS})
    with running(folder, trust_code=True) as server:
        load = Load(server.address, [row(), row(1.0)], seconds=0.1, agreement=Agreement(0.01))
        before = run_at(load, [0.0] * 6)
        (folder / "mood").touch()
        after = run_at(load, [0.0] * 6)
        unchecked = run_at(replace(load, agreement=None), [0.0] * 6)
    assert (before.answered, before.wrong, before.is_clean) == (6, 0, True)
    assert (after.answered, after.wrong, after.is_clean) == (6, 6, False)
    assert (unchecked.answered, unchecked.wrong) == (6, 0)


def test_a_degraded_answer_is_counted_and_not_called_wrong(tmp_path: Path) -> None:
    folder = write_ensemble(tmp_path / "moody", MOODY, {"models.py": MODELS})
    agreement = Agreement(0.0)
    with running(folder, trust_code=True) as server:
        load = Load(server.address, [row(5.0)], seconds=0.1, agreement=agreement)
        assert agreement.holds(0, pb.InferResponse(version=1, fusion_version=1))
        tally = run_at(load, [0.0, 0.05])
    assert (tally.answered, tally.degraded, tally.wrong, tally.is_clean) == (2, 2, 0, True)


# --- percentiles ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), median_ms=st.floats(0.05, 60_000.0), spread=st.floats(0.0, 2.0))
def test_percentiles_are_numpys_within_a_thousandth(seed: int, median_ms: float, spread: float) -> None:
    taken = np.random.default_rng(seed).lognormal(math.log(median_ms / 1e3), spread, 1000).clip(1e-6, 3599.0)
    tally = Tally()
    for latency in taken:
        tally.add_answer(pb.InferResponse(), latency, is_right=True)
    found = tally.milliseconds()
    exact = {f"p{percentile:g}": np.percentile(taken, percentile, method="inverted_cdf") for percentile in (50, 90, 99)}
    exact |= {"p99.9": np.sort(taken)[998], "max": taken.max()}  # 99.9 % of 1,000 as a float is a little more than 999
    for name, latency in exact.items():
        assert latency * 1e3 <= found[name] + 1e-9
        assert found[name] <= latency * 1e3 * 1.001 + 0.001


@given(st.lists(st.lists(st.floats(1e-6, 4000.0), max_size=20), min_size=2, max_size=3))
def test_tallies_put_together_are_one_tally_of_everything(parts: list[list[float]]) -> None:
    def tally_of(taken: Iterable[float]) -> Tally:
        tally = Tally()
        for latency in taken:
            tally.add_answer(pb.InferResponse(timings={"batch_size": 3}), latency, is_right=latency < 1.0)
            tally.add_error(TwinferError("no"))
        return tally

    together = Tally()
    for part in parts:
        together.add(tally_of(part))
    assert together.figures() == tally_of(itertools.chain(*parts)).figures()


def test_server_times_and_rows_per_flight_are_means_over_the_answers() -> None:
    tally = Tally()
    for rows, nanos in ((1, 1_000_000), (3, 2_000_000)):
        timings = pb.Timings(batch_size=rows)
        timings.queue.nanos, timings.total.nanos, timings.total.seconds = nanos, nanos, 1
        tally.add_answer(pb.InferResponse(timings=timings), 0.001, is_right=True)
    assert tally.batch_size() == 2.0
    assert tally.server_milliseconds() == {"decode": 0.0, "queue": 1.5, "device": 0.0, "total": 1001.5}


def test_a_busy_client_is_warned_of() -> None:
    tally = Tally()
    tally.seconds, tally.loop_cpu_seconds = 2.0, 1.8
    assert tally.warnings() == ["this client is the limit: its event loop was busy 90% of the time"]
    tally.loop_cpu_seconds = 1.0
    assert tally.warnings() == []

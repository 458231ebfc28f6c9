"""Load: calls at their times, latency from when a call was to begin, failures by reason."""

import asyncio
import itertools
import json
import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import PATIENCE_SECONDS
from tests.scripted import ANSWER, Context, ScriptedService, serving
from twinfer import Response, TwinferError, make_request
from twinfer.load import Load, Measurement, Point, Tally, figures, measure
from twinfer.load.loops import poisson, run_closed, run_open
from twinfer.v1 import ensemble_service_pb2 as pb

ASK = make_request({"text": "fve"})
BAD = make_request({"text": "bad"})
WAYS: dict[str, int] = {"Infer": 1, "BatchInfer": 3}


def hold_until(gate: threading.Event) -> ScriptedService:
    """Return a service that answers nothing until the test opens the gate."""

    def hold(request: pb.InferRequest, context: Context) -> pb.InferResponse:
        assert gate.wait(PATIENCE_SECONDS)
        return ANSWER

    return ScriptedService(hold)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(ScriptedService()) as found:
        yield found


def run_at(load: Load, arrivals: Iterable[float]) -> Tally:
    tally = Tally()
    asyncio.run(run_open(load, arrivals, tally))
    return tally


def latencies(tally: Tally) -> list[float]:
    """Return the latencies in seconds, longest first."""
    return sorted(tally.latencies, reverse=True)


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
def test_every_arrival_of_the_schedule_is_answered_once(service: ScriptedService, way: str) -> None:
    requests, times = [make_request({"text": str(number)}) for number in range(5)], list(poisson(100.0, 0.5, seed=1))
    tally = run_at(Load(service.address, requests, seconds=0.5, batch=WAYS[way]), times)
    asked = len(times) * WAYS[way]
    assert (tally.answered, tally.failed, tally.not_sent, tally.is_clean) == (asked, 0, 0, True)
    counts = [service.requests.count(request) for request in requests]
    assert sum(counts) == asked
    assert max(counts) - min(counts) <= 1  # they are sent in turn


def test_arrivals_of_the_warm_up_are_sent_and_not_counted_and_degraded_answers_are_clean(service: ScriptedService) -> None:
    tally = run_at(Load(service.address, [ASK], seconds=0.1, warm_up_seconds=0.1), [0.0, 0.01, 0.02, 0.15])
    assert (tally.answered, len(service.requests)) == (1, 4)
    assert (tally.degraded, tally.is_clean) == (1, True)  # ANSWER is degraded


def test_calls_do_not_wait_for_one_another_and_each_counts_from_its_own_time() -> None:
    gate, times = threading.Event(), [0.0, 0.05, 0.1, 0.2]

    def arrivals() -> Iterator[float]:
        yield from times
        gate.set()  # nothing is answered before the last call was begun

    with serving(hold_until(gate)) as address:
        tally = run_at(Load(address, [ASK], seconds=1.0), arrivals())
    assert tally.answered == 4
    assert all(latency >= times[-1] - time for latency, time in zip(latencies(tally), times, strict=True))


def test_a_call_that_begins_late_counts_from_when_it_was_to_begin(address: str) -> None:
    # As if this side had done something else for the first five seconds.
    tally = run_at(Load(address, [ASK], seconds=6.0, warm_up_seconds=-5.0), [-5.0, -3.0, -1.0])
    assert [math.floor(latency) for latency in latencies(tally)] == [5, 3, 1]
    assert 3_000 <= tally.begun_late_ms < 4_000
    assert "this client is late: calls began 3" in tally.warnings()[0]


def test_arrivals_beyond_the_bound_are_counted_and_said() -> None:
    gate = threading.Event()

    def arrivals() -> Iterator[float]:
        yield from itertools.repeat(0.0, 10)
        gate.set()

    with serving(hold_until(gate)) as address:
        tally = run_at(Load(address, [ASK], seconds=0.2, max_in_flight=3), arrivals())
    assert (tally.answered, tally.not_sent, tally.is_clean) == (3, 7, False)
    assert any("7 arrivals were not sent" in warning for warning in tally.warnings())


@pytest.mark.parametrize("way", WAYS)
def test_a_closed_loop_has_as_many_calls_under_way_as_it_was_told(way: str) -> None:
    gate = threading.Event()

    class OpensTheGate(Tally):
        """Lets the answers pass when the time is over, which is when the CPU's share of it is noted."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "loop_cpu_seconds" and value:
                gate.set()

    tally = OpensTheGate()
    with serving(hold_until(gate)) as address:
        asyncio.run(run_closed(Load(address, [ASK], seconds=0.1, batch=WAYS[way]), 3, tally))
    assert (tally.answered, tally.in_time, tally.rate) == (3 * WAYS[way], 0, 0.0)


def test_a_call_of_a_closed_loop_begins_when_another_has_ended(address: str) -> None:
    tally = Tally()
    asyncio.run(run_closed(Load(address, [ASK], seconds=0.2), 1, tally))
    assert tally.answered - tally.in_time in (0, 1)
    assert sum(latencies(tally)[1:]) <= 0.2 * 1.005
    assert tally.rate == pytest.approx(tally.in_time / 0.2)


@pytest.mark.parametrize(("point", "said"), [(Point("concurrency", 2), "2 calls"), (Point("rate", 50), "50/s")], ids=str)
def test_a_point_is_measured_by_its_kind_of_loop(address: str, point: Point, said: str) -> None:
    load, measurement = Load(address, [ASK], seconds=0.2), Measurement(point)
    measure(load, measurement)
    assert measurement.is_complete
    assert measurement.tally.answered > 0
    if point.kind == "rate":
        assert measurement.tally.answered == len(list(poisson(50.0, 0.2, seed=0)))
    assert str(point) == said
    [written] = figures(load, "title", [measurement])["points"]
    assert written[point.kind] == point.value


# --- what came of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_failures_are_counted_by_their_reason(address: str, way: str) -> None:
    tally = run_at(Load(address, [ASK, BAD, BAD], seconds=0.5, batch=WAYS[way]), [0.0] * (12 // WAYS[way]))
    assert tally.answered == 4
    assert tally.errors == {"INVALID_INPUT": 8}
    assert tally.examples == {"INVALID_INPUT": "inputs['text']: no"}
    assert not tally.is_clean


@pytest.mark.parametrize("way", WAYS)
def test_where_no_server_listens_the_code_is_the_reason(refused_address: str, way: str) -> None:
    tally = run_at(Load(refused_address, [ASK], seconds=0.1, batch=WAYS[way]), [0.0, 0.05])
    assert tally.errors == {grpc.StatusCode.UNAVAILABLE.name: 2 * WAYS[way]}
    assert tally.milliseconds() == {}
    json.dumps(tally.figures(), allow_nan=False)


def test_percentiles_are_latencies_that_occurred() -> None:
    tally = Tally()
    for number in np.random.default_rng(0).permutation(1000):
        tally.add_result(Response.from_message(pb.InferResponse()), (number + 1) / 1e3)
    found = tally.milliseconds()
    assert found == pytest.approx({"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}, abs=1.0)
    assert tally.answered == 1000


def test_server_times_and_batch_sizes_are_means_over_the_answers() -> None:
    tally = Tally()
    for size, nanos in ((1, 1_000_000), (3, 2_000_000)):
        timings: Any = {"batch_size": size, "queue": {"nanos": nanos}, "total": {"seconds": 1, "nanos": nanos}}
        tally.add_result(Response.from_message(pb.InferResponse(timings=timings)), 0.001)
    tally.add_result(TwinferError("no"), 0.001)
    assert tally.batch_size == 2.0
    assert tally.server_milliseconds() == {"decode": 0.0, "queue": 1.5, "device": 0.0, "total": 1001.5}


def test_a_busy_client_is_warned_of() -> None:
    tally = Tally(seconds=2.0, loop_cpu_seconds=1.8)
    assert tally.warnings() == ["this client is the limit: its event loop was busy 90% of the time"]
    tally.loop_cpu_seconds = 1.0
    assert tally.warnings() == []

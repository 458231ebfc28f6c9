"""The marks: what a run of the peers is judged by, and which delay a sweep picks."""

from dataclasses import replace

import pytest

from benchmarks.loop import Served
from benchmarks.max_delay import FEW, MANY
from benchmarks.max_delay import judge as judge_delays
from benchmarks.peers.marks import FREE, PINNED, WAY_OF, Point, judge

SERVED = Served(requests_per_second=1000.0, p50_ms=2.0, p99_ms=3.0, server_cpu_ms=0.5, batch_size=None)


def all_alike() -> dict[Point, Served]:
    points = [
        Point(pair, PINNED, level, server, way)
        for pair in ("noop", "small")
        for level in (1, 32, 64)
        for server, way in [*WAY_OF.items(), ("twinfer", "InferStream"), ("twinfer", "BatchInfer")]
    ]
    free = [Point("small", FREE, level, server, WAY_OF[server]) for level in (32, 64) for server in ("twinfer", "Mosec")]
    return dict.fromkeys((*points, *free), SERVED)


def servers(seconds: float, mib: float) -> dict[tuple[str, str], dict[str, object]]:
    return {
        (pair, server): {"first_answer_seconds": seconds if server == "twinfer" else 1.0, "peak_mib": mib}
        for pair in ("noop", "small")
        for server in ("twinfer", "bare")
    }


def test_a_server_like_all_others_meets_every_mark_but_those_that_ask_for_more() -> None:
    marks = judge(all_alike(), servers(seconds=2.5, mib=350.0))
    assert len(marks) == 19
    assert {mark.name for mark in marks if mark.outcome == "missed"} == {
        f"small, {way}, 64 in flight: requests/s / Mosec's" for way in ("BatchInfer", "InferStream")
    }


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"p50_ms": 2.51}, ["noop, Infer, alone: p50 / bare's", "small, Infer, alone: p50 / bare's"]),
        ({"p50_ms": 2.3}, ["small, Infer, alone: p50 / bare's"]),
        ({"server_cpu_ms": 0.71}, ["noop, Infer, alone: server CPU ms a request beyond bare's"]),
    ],
    ids=["a latency past both marks", "a latency past the small pair's", "more CPU time"],
)
def test_a_lone_call_is_compared_with_bare_grpc(change: dict[str, float], missed: list[str]) -> None:
    medians = all_alike()
    for pair in ("noop", "small"):
        medians[Point(pair, PINNED, 1, "twinfer", "Infer")] = replace(SERVED, **change)
    assert [mark.name for mark in judge(medians, {}) if mark.outcome == "missed" and "alone" in mark.name] == missed


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    medians = {point: served for point, served in all_alike().items() if point.server != "Triton"}
    assert {mark.name for mark in judge(medians, {}) if mark.outcome == "not measured"} == {
        f"small, Infer, {level} in flight: requests/s / Triton's" for level in (32, 64)
    }


def test_slow_starts_and_large_servers_miss_their_marks() -> None:
    marks = judge(all_alike(), servers(seconds=2.6, mib=351.0))
    assert [mark.outcome for mark in marks[-4:]] == ["missed"] * 4


def test_the_smallest_delay_that_keeps_the_rate_and_the_latency_will_do() -> None:
    rates, latencies = {0.0: 800.0, 1.0: 960.0, 2.0: 1000.0, 4.0: 1000.0}, {0.0: 2.0, 1.0: 2.1, 2.0: 2.2, 4.0: 4.0}
    medians = {
        ("noop", level, delay): replace(SERVED, requests_per_second=rates[delay], p50_ms=latencies[delay])
        for level in (FEW, MANY)
        for delay in rates
    }
    assert [figure["will_do"] for figure in judge_delays(medians, ["noop"], list(rates))] == ["no", "yes", "yes", "no"]

"""What Prometheus reads is what the answers said."""

import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import DIGITS, RunningServer, running
from twinfer import Client
from twinfer.errors import TwinferError
from twinfer_server.demo import read_rows
from twinfer_server.row_book import STAGES, RowBook
from twinfer_server.types import MemberResult, Response, State, Timings

ROW = read_rows(DIGITS)[0]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running(DIGITS, metrics_listen="127.0.0.1:0") as started:
        yield started


def scrape(server: RunningServer) -> Samples:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def count(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def test_rows_states_and_refusals_are_counted(server: RunningServer) -> None:
    with Client(server.address) as client:
        for _ in range(3):
            client.infer({"image": ROW.image, "text": ROW.text})
        client.infer({"text": ROW.text})
        with pytest.raises(TwinferError):
            client.infer({"image": b"not an image"})
        with pytest.raises(TwinferError):
            client.infer({"unknown": "text"})
    samples = scrape(server)
    assert count(samples, "twinfer_rows_total", code="OK", reason="") == 4
    assert count(samples, "twinfer_rows_total", code="INVALID_ARGUMENT", reason="INVALID_INPUT") == 1
    assert count(samples, "twinfer_rows_total", code="INVALID_ARGUMENT", reason="UNKNOWN_INPUT") == 1
    for stage in ("decode", "queue", "device", "total"):
        assert count(samples, "twinfer_stage_seconds_count", stage=stage) == 4
    assert count(samples, "twinfer_degraded_answers_total") == 0
    assert count(samples, "twinfer_rows_waiting") == 0
    assert count(samples, "twinfer_member_rows_total", member="vision", state="OK") == 3
    assert count(samples, "twinfer_member_rows_total", member="vision", state="NO_INPUT") == 1
    assert count(samples, "twinfer_member_rows_total", member="language", state="OK") == 4
    assert count(samples, "twinfer_rows_in_hand") == 0
    assert count(samples, "twinfer_bytes_in_hand") == 0


def test_flights_are_measured_as_their_answers_say(server: RunningServer) -> None:
    with Client(server.address) as client:
        answers = [client.infer({"image": ROW.image, "text": ROW.text}) for _ in range(5)]
    plans = {answer.timings.execution for answer in answers}
    # A flight is written down after its rows have been answered, so the last one may still be on its way into the books.
    scrapes = (scrape(server) for _ in range(1000))
    samples = next(
        found for found in scrapes if sum(count(found, "twinfer_flights_total", execution=execution) for execution in plans) == 5
    )
    assert count(samples, "twinfer_flight_rows_sum") == 5
    assert count(samples, "twinfer_overlap_ratio_count") == 5
    said = sum(answer.timings.overlap_ratio or 0.0 for answer in answers)
    assert count(samples, "twinfer_overlap_ratio_sum") == pytest.approx(said, rel=1e-6)
    for name in ("vision", "language"):
        spans = sum((answer.members[name].device_ms or 0.0) / 1000 for answer in answers)
        assert count(samples, "twinfer_member_device_seconds_sum", member=name) == pytest.approx(spans, abs=1e-6)
        alone = sum((answer.members[name].solo_ms or 0.0) / 1000 for answer in answers)
        assert alone > 0
        assert count(samples, "twinfer_member_alone_seconds_sum", member=name) == pytest.approx(alone, abs=1e-6)
        assert count(samples, "twinfer_captures_total", member=name, result="miss") == 5


def test_answers_of_every_kind_of_member_are_counted_as_they_were() -> None:
    def answer(*states: State) -> Response:
        timings = Timings(decode_seconds=0.001, queue_seconds=0.02, device_seconds=0.3, batch_size=1)
        return Response(np.zeros(2, dtype=np.float32), tuple(map(MemberResult, states)), None, timings)

    registry, book = CollectorRegistry(), RowBook((0.01, 0.1))
    book.members = ("left", "right")
    registry.register(book)
    for states in ((State.OK, State.OK), (State.OK, State.LATE), (State.OK, State.SKIPPED), (State.NO_INPUT, State.OK)):
        book.note_answer(answer(*states), 0.5)
    found = {(sample.name, *sample.labels.values()): sample.value for family in registry.collect() for sample in family.samples}
    assert found["twinfer_rows_total", "OK", ""] == 4
    assert found["twinfer_degraded_answers_total",] == 1
    assert [found["twinfer_member_rows_total", "left", state.name] for state in State] == [3, 0, 0, 0, 0, 1]
    assert [found["twinfer_member_rows_total", "right", state.name] for state in State] == [2, 0, 1, 1, 0, 0]
    assert [found["twinfer_stage_seconds_bucket", stage, "0.1"] for stage in STAGES] == [4, 4, 0, 0]
    assert found["twinfer_stage_seconds_bucket", "decode", "0.01"] == found["twinfer_stage_seconds_count", "total"] == 4
    assert found["twinfer_stage_seconds_sum", "total"] == pytest.approx(2.0)

"""UpdateFusion and RollbackFusion: another fusion for the next batch, while calls go on, and none of them the worse for it."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.batches import copy_digits
from tests.calls import connect, failure_of
from tests.models import Opinion, first_chance, number, write_members
from tests.servers import DIGITS, running
from twinfer import Client, Response
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc as admin_grpc
from twinfer.v1 import ensemble_pb2
from twinfer_server.fusion import Fitted, write_fitted

LEFT, RIGHT = 0.25, 2.0
LEFT_CHANCE, RIGHT_CHANCE = 0.6224593, 0.9820138  # 1 / (1 + exp(-2x))
CALLERS = 32
UPDATES = 30


@dataclass(frozen=True, slots=True)
class Served:
    """A served pair of opinions, its callers' client and its operators' stub."""

    client: Client
    admin: Any

    def ask(self, **options: Any) -> Response:
        return self.client.infer({"left": number(LEFT), "right": number(RIGHT)}, **options)

    def update(self, **fields: Any) -> ensemble_pb2.Fusion:
        reply: admin_pb.UpdateFusionResponse = self.admin.UpdateFusion(admin_pb.UpdateFusionRequest(**fields))
        return reply.fusion

    def roll_back(self, version: int = 0) -> ensemble_pb2.Fusion:
        reply: admin_pb.RollbackFusionResponse = self.admin.RollbackFusion(admin_pb.RollbackFusionRequest(version=version))
        return reply.fusion


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Served]:
    with (
        running(folder, admin_listen="127.0.0.1:0", **settings) as server,
        Client(server.address, attempts=1) as client,
        connect(server.admin_address) as channel,
    ):
        yield Served(client, admin_grpc.EnsembleAdminServiceStub(channel))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(write_members(tmp_path, {"left": Opinion(), "right": Opinion()}, max_batch_size=8), trust_code=True) as found:
        yield found


def mean(weights: Mapping[str, float]) -> float:
    """What the weighted mean of the two opinions is."""
    return (weights["left"] * LEFT_CHANCE + weights["right"] * RIGHT_CHANCE) / (weights["left"] + weights["right"])


def test_an_ensemble_of_images_and_texts_takes_other_weights_too() -> None:
    with serving(DIGITS) as served:
        assert served.update(weights={"vision": 3.0, "language": 1.0}).version == 2


def test_weights_count_from_the_next_answer_on_and_carry_their_version(served: Served) -> None:
    before = served.ask()
    assert before.fusion_version == 1
    fusion = served.update(weights={"left": 3.0, "right": 1.0})
    assert (fusion.version, dict(fusion.weights)) == (2, {"left": 0.75, "right": 0.25})
    after = served.ask()
    assert after.fusion_version == 2
    assert first_chance(after) == pytest.approx(mean({"left": 3, "right": 1}), abs=1e-6)
    assert after.members["left"].weight == 0.75
    assert served.client.describe().fusion.version == 2


def test_a_callers_own_weights_still_win(served: Served) -> None:
    served.update(weights={"left": 1.0})
    assert first_chance(served.ask(fusion_weights={"right": 1.0})) == pytest.approx(RIGHT_CHANCE, abs=1e-6)


def test_a_temperature_is_one_of_a_version_like_weights(served: Served) -> None:
    fusion = served.update(temperatures={"right": 4.0})
    assert fusion.version == 2
    expected = mean({"left": 1, "right": 1}) - RIGHT_CHANCE / 2 + 0.7310586 / 2  # right says what it would for x = 0.5
    assert first_chance(served.ask()) == pytest.approx(expected, abs=1e-6)


def test_another_method_is_put_to_use_and_keeps_the_weights_if_it_takes_them(served: Served) -> None:
    served.update(weights={"left": 3.0, "right": 1.0})
    assert dict(served.update(method="log_opinion_pool").weights) == {"left": 0.75, "right": 0.25}
    assert dict(served.update(method="maximum").weights) == {}
    answer = served.ask()
    assert answer.fusion_version == 4
    assert first_chance(answer) == pytest.approx(RIGHT_CHANCE / (RIGHT_CHANCE + 1 - LEFT_CHANCE), abs=1e-6)


def test_what_was_fitted_is_put_to_use_without_a_restart(tmp_path: Path) -> None:
    folder = copy_digits(tmp_path / "digits")
    digests = {name: hashlib.sha256((folder / f"{name}.pt2").read_bytes()).hexdigest() for name in ("vision", "language")}
    fitted = Fitted("weighted_mean", digests, {"vision": 0.75, "language": 0.25}, {"vision": 1.0, "language": 2.0})
    with serving(folder) as served:
        assert "twinfer fit" in failure_of(lambda: served.update(fitted=True)).details
        write_fitted(folder, fitted)
        fusion = served.update(fitted=True)
        assert (fusion.method, dict(fusion.weights), fusion.version) == ("weighted_mean", dict(fitted.weights), 2)
        answer = served.client.infer({"text": "seven"}, member_predictions=True)
        own = answer.members["language"].prediction
        assert own is not None
        assert answer.label == own.label
        assert answer.probability == pytest.approx(own.probability, abs=1e-6)
        write_fitted(folder, replace(fitted, digests=digests | {"vision": "0" * 64}))
        assert "the member 'vision' has now" in failure_of(lambda: served.update(fitted=True)).details
        assert served.client.infer({"text": "seven"}).fusion_version == 2


def test_one_call_goes_back_and_the_number_comes_back_with_it(served: Served) -> None:
    served.update(weights={"left": 1.0})
    served.update(weights={"right": 1.0})
    assert served.roll_back().version == 2
    assert served.roll_back().version == 1
    assert first_chance(served.ask()) == pytest.approx(mean({"left": 1, "right": 1}), abs=1e-6)
    assert served.roll_back(3).version == 3
    assert served.update(weights={"left": 1.0}).version == 4


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        pytest.param({}, ["found nothing to change"], id="nothing to change"),
        pytest.param({"weights": {"third": 1.0}}, ["third", "'left', 'right'"], id="a member that is not there"),
        pytest.param({"weights": {"left": -1.0}}, ["weights.left", "-1.0"], id="a negative weight"),
        pytest.param({"weights": {"left": float("nan")}}, ["weights.left", "nan"], id="a weight that is no number"),
        pytest.param({"weights": {"left": 0.0}}, ["all 0"], id="weights of 0 only"),
        pytest.param({"temperatures": {"left": 0.0}}, ["temperatures.left", "0.0"], id="a temperature of 0"),
        pytest.param({"method": "median"}, ["median", "weighted_mean"], id="an unknown method"),
        pytest.param({"method": "concatenation"}, ["concatenation", "classification"], id="a method for another task"),
        pytest.param({"fitted": True}, ["fusion.safetensors"], id="a fitted fusion that is not there"),
        pytest.param({"fitted": True, "method": "maximum"}, ["allowed: alone"], id="a fitted fusion and a method"),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_the_reason_and_changes_nothing(
    served: Served, fields: dict[str, Any], parts: list[str]
) -> None:
    failure = failure_of(lambda: served.update(**fields))
    assert served.ask().fusion_version == 1
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_OPTION"
    for part in parts:
        assert part in failure.details


def test_a_change_that_comes_too_late_is_refused(served: Served) -> None:
    assert served.update(expected_version=1, weights={"left": 1.0}).version == 2
    failure = failure_of(lambda: served.update(expected_version=1, weights={"right": 1.0}))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FUSION_VERSION")
    assert "found 1; allowed: 2" in failure.details


def test_a_version_that_is_not_kept_cannot_be_gone_back_to(served: Served) -> None:
    for version in (0, 9):
        failure = failure_of(lambda version=version: served.roll_back(version))  # type: ignore[misc]
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FUSION_VERSION")


def test_no_call_fails_and_no_answer_mixes_versions_while_weights_change(served: Served) -> None:
    """Every answer is what its own version's weights give, for callers who never pause."""
    weights = {1: {"left": 1.0, "right": 1.0}}
    ended = threading.Event()

    def call() -> list[Response]:
        answers = []
        while not ended.is_set():
            answers.append(served.ask())
        return answers

    with ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(call) for _ in range(CALLERS)]
        for step in range(UPDATES):
            left = {"left": 1.0 + step, "right": 1.0}
            weights[served.update(weights=left).version] = left
            ended.wait(0.1)  # ten times a second
        served.update(method="maximum")  # a swap of the method
        served.update(method="weighted_mean")
        ended.set()
    answers = [answer for finished in calls for answer in finished.result()]
    for answer in answers:
        version = answer.fusion_version
        if version in weights:
            assert first_chance(answer) == pytest.approx(mean(weights[version]), abs=1e-6)
            share = weights[version]["left"] / (weights[version]["left"] + 1)
            assert answer.members["left"].weight == pytest.approx(share, abs=1e-6)
        assert not answer.degraded
    assert len({answer.fusion_version for answer in answers}) > UPDATES / 2

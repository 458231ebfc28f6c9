"""Explained answers: every member's calibrated prediction, its weight, and how far it moved the answer."""

from collections.abc import Iterator

import pytest

from tests.models import Opinion, chance, edit_spec, number, write_members
from tests.servers import running
from twinfer import Client, Prediction, Response

WEIGHTS = {"left": 0.25, "right": 0.75}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("explained")
    write_members(folder, {"left": Opinion(), "right": Opinion()}, 'policy = "best_effort"')
    fusion = 'method = "weighted_mean"\nweights = { left = 0.25, right = 0.75 }\ntemperatures = { right = 2.0 }'
    edit_spec(folder, 'method = "weighted_mean"', fusion)
    with running(folder, trust_code=True) as server, Client(server.address, attempts=1) as client:
        yield client


def first_chance(prediction: Prediction | None) -> float:
    assert prediction is not None
    return next(scored.probability for scored in prediction.classes if scored.index == 0)


def ask(client: Client, **xs: float) -> Response:
    return client.infer({name: number(x) for name, x in xs.items()}, explain=True)


def test_every_member_has_its_calibrated_prediction_its_weight_and_how_far_it_moved_the_answer(client: Client) -> None:
    answer = ask(client, left=1.0, right=-0.5)
    predicted = {"left": chance(1.0), "right": chance(-0.25)}  # the right one's logits are halved
    fused = sum(WEIGHTS[name] * own for name, own in predicted.items())
    assert first_chance(answer.prediction) == pytest.approx(fused, abs=1e-6)
    for name, other in (("left", "right"), ("right", "left")):
        member = answer.members[name]
        assert first_chance(member.prediction) == pytest.approx(predicted[name], abs=1e-6)
        assert member.weight == pytest.approx(WEIGHTS[name])
        assert member.attribution is not None
        assert first_chance(member.attribution.without) == pytest.approx(predicted[other], abs=1e-6)
        assert member.attribution.delta == pytest.approx(abs(fused - predicted[other]), abs=1e-6)


def test_a_member_that_is_alone_has_no_attribution_for_there_is_no_answer_without_it(client: Client) -> None:
    answer = ask(client, left=1.0)
    assert [member.attribution for member in answer.members.values()] == [None, None]
    assert answer.members["left"].prediction == answer.prediction


def test_an_answer_is_not_explained_unless_asked(client: Client) -> None:
    answer = client.infer({"left": number(1.0), "right": number(2.0)})
    assert all(member.attribution is None and member.prediction is None for member in answer.members.values())

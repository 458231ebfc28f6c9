"""A request's answer does not depend on its neighbours: not on how many they are, what they carry, or how broken they are."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.batches import HELD_OUT, copy_digits, form, launch, make_request
from tests.conftest import DigitsServer
from tests.models import load_members, write_members
from tests.servers import running
from twinfer import Client, Response, TwinferError
from twinfer.inputs import Value
from twinfer.requests import Options
from twinfer.requests import make_request as make_message
from twinfer.v1 import ensemble_service_pb2, tensor_pb2

CLASSES = 10
MOST = 40
TRUNCATED = HELD_OUT[0].image.read_bytes()[:60]

Result = Response | TwinferError


@dataclass(frozen=True)
class Ask:
    """What one request asks; its text and image are those of held-out row `number` unless something is wrong with them."""

    number: int
    modalities: str
    fault: str = ""
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def request(self) -> ensemble_service_pb2.InferRequest:
        row = HELD_OUT[self.number]
        given: dict[str, Value] = {"image": row.image, "text": row.text}
        inputs = {name: given[name] for name in self.modalities.split("+")} | dict(FAULTY_INPUTS.get(self.fault, {}))
        options: Options = {"top_k": CLASSES, "member_predictions": True, "policy": "best_effort"}
        options["fusion_weights"] = {"vision": math.nan} if self.fault == "NaN in a weight" else self.weights
        return make_message(inputs, **options)


FAULTY_INPUTS: Mapping[str, Mapping[str, Value]] = {
    "a truncated image": {"image": TRUNCATED},
    "no image bytes": {"image": b""},
    "bytes that are no image": {"image": b"five" * 100},
    "a text without a token": {"text": ""},
    "a text over the limit": {"text": "five " * 20_000},
    "an unknown input": {"sound": "five"},
    "a tensor that its bytes do not fill": {
        "image": tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[8, 8, 1], data=b"short")
    },
    "an unset dtype": {"image": tensor_pb2.Tensor(shape=[8, 8, 1], data=bytes(64))},
}
FAULTS = [*FAULTY_INPUTS, "NaN in a weight"]

MODALITIES = st.sampled_from(["image+text", "image+text", "image", "text"])
NUMBERS = st.integers(0, MOST - 1)
OWN_WEIGHTS: Mapping[str, float] = {}
WEIGHTS = st.one_of(st.just(OWN_WEIGHTS), st.fixed_dictionaries({"vision": st.floats(0, 1), "language": st.floats(0.1, 1)}))
GOOD = st.builds(Ask, NUMBERS, MODALITIES, st.just(""), WEIGHTS)
BAD = st.builds(Ask, NUMBERS, MODALITIES, st.sampled_from(FAULTS))
MIXES = st.lists(st.one_of(GOOD, GOOD, GOOD, BAD), min_size=2, max_size=MOST)

QUICK = settings(max_examples=60)


def ask_as_batch(client: Client, asks: Sequence[Ask]) -> list[Result]:
    return [outcome.result for outcome in client.infer_batch([ask.request() for ask in asks], timeout=60)]


def ask_over_stream(client: Client, asks: Sequence[Ask]) -> list[Result]:
    outcomes = client.infer_many([ask.request() for ask in asks], window=64, timeout=60)
    results = {outcome.index: outcome.result for outcome in outcomes}
    return [results[index] for index in range(len(asks))]


WAYS = {"over a stream": ask_over_stream, "in one batch": ask_as_batch}


def ask_alone(client: Client, ask: Ask) -> Result:
    try:
        answer = client.infer(ask.request(), timeout=60)
        assert answer.timings.batch_size == 1
        return answer
    except TwinferError as error:
        return error


def check_error(together: TwinferError, alone: Result) -> None:
    assert isinstance(alone, TwinferError)
    assert type(together) is type(alone)
    assert (together.code, together.reason, together.stage, together.text) == (alone.code, alone.reason, alone.stage, alone.text)


def by_class(prediction: ensemble_service_pb2.Prediction) -> list[float]:
    return [scored.probability for scored in sorted(prediction.classification.classes, key=lambda scored: scored.index)]


@pytest.mark.parametrize("ask_together", WAYS.values(), ids=WAYS)
@QUICK
@given(asks=MIXES)
def test_a_request_is_answered_among_others_as_it_is_alone(
    digits_server: DigitsServer, ask_together: Callable[..., list[Result]], asks: Sequence[Ask]
) -> None:
    with Client(digits_server.address) as client:
        for ask, together in zip(asks, ask_together(client, asks), strict=True):
            alone = ask_alone(client, ask)
            if isinstance(together, TwinferError):
                assert ask.fault
                check_error(together, alone)
                continue
            assert not ask.fault
            assert isinstance(alone, Response)
            ours, theirs = together.message, alone.message
            assert by_class(ours.prediction) == pytest.approx(by_class(theirs.prediction), abs=1e-5)
            assert ours.disagreement == pytest.approx(theirs.disagreement, abs=1e-5)
            for our, their in zip(ours.members, theirs.members, strict=True):
                assert (our.name, our.state) == (their.name, their.state)
                assert our.weight == pytest.approx(their.weight, abs=1e-6)
                assert by_class(our.prediction) == pytest.approx(by_class(their.prediction), abs=1e-5)


@pytest.mark.parametrize("ask_together", WAYS.values(), ids=WAYS)
def test_requests_that_are_made_together_do_share_batches(
    digits_server: DigitsServer, ask_together: Callable[..., list[Result]]
) -> None:  # fmt: skip
    with Client(digits_server.address) as client:
        results = ask_together(client, [Ask(number, "image+text") for number in range(MOST)] * 3)
    assert max(result.timings.batch_size for result in results if isinstance(result, Response)) > 1


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_of_its_own(digits_server: DigitsServer, fault: str) -> None:
    with Client(digits_server.address) as client:
        bad, good = ask_over_stream(client, [Ask(0, "image+text", fault), Ask(1, "image+text")])
    assert isinstance(bad, TwinferError)
    assert isinstance(good, Response)
    assert not good.degraded


@pytest.fixture(scope="module")
def deterministic_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(copy_digits(tmp_path_factory.mktemp("deterministic") / "digits", "deterministic = true")) as server:
        yield server.address


def payload(answer: Response) -> bytes:
    """Return all of an answer that must not change, as bytes: everything but the times."""
    message = ensemble_service_pb2.InferResponse.FromString(answer.message.SerializeToString())
    message.ClearField("timings")
    message.ClearField("request_id")
    for member in message.members:
        member.ClearField("device_time")
    return message.SerializeToString(deterministic=True)


@QUICK
@given(asks=MIXES)
def test_a_deterministic_ensemble_answers_the_same_to_the_bit(deterministic_address: str, asks: Sequence[Ask]) -> None:
    with Client(deterministic_address) as client:
        for ask, together in zip(asks, ask_over_stream(client, asks), strict=True):
            alone = ask_alone(client, ask)
            if isinstance(together, TwinferError):
                check_error(together, alone)
                continue
            assert isinstance(alone, Response)
            assert payload(together) == payload(alone)


class Spread(nn.Module):
    """Answers a number times seven others: the same bits at every position, so that all that may differ is the fusion's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("others", torch.randn(7, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("others")


@pytest.mark.parametrize("is_late", [False, True], ids=["on the device", "on the host"])
@pytest.mark.parametrize("max_batch_size", [5, 32])
def test_a_deterministic_fusion_is_the_same_to_the_bit_however_many_requests_there_are(
    tmp_path: Path, max_batch_size: int, is_late: bool
) -> None:
    folder = write_members(tmp_path, {"left": Spread(1), "right": Spread(2)}, "deterministic = true", max_batch_size=max_batch_size)
    ensemble = load_members(folder)
    xs = torch.randn(max_batch_size, 2, generator=torch.Generator().manual_seed(3)).numpy()

    def fuse(indices: Sequence[int]) -> Tensor:
        batch = launch(form(ensemble, [make_request(ensemble, {"left": xs[i, :1], "right": xs[i, 1:]}) for i in indices]))
        fused = batch.fuse(range(len(indices))) if is_late else batch.result
        ensemble.release(batch)
        assert fused is not None
        return fused.prediction.clone()

    full = fuse(range(max_batch_size))
    for count in range(1, max_batch_size):
        assert torch.equal(fuse(range(count)), full[:count])
    assert torch.equal(fuse(range(max_batch_size)[::-1]), full.flip(0))

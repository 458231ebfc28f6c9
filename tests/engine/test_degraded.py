"""A sick member under load: no call fails because of it where the policy allows, and the other member never notices."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor

from tests.models import Opinion, number, write_members
from tests.servers import running
from twinfer import Client, Response, TwinferError
from twinfer.errors import MemberFailed, MemberLate, MemberOff, NotFinite, Stage

CALLERS = 32
CALLS = 256
DEADLINE_SECONDS = 4.0
CODES = {
    MemberFailed: grpc.StatusCode.INTERNAL,
    NotFinite: grpc.StatusCode.INTERNAL,
    MemberLate: grpc.StatusCode.DEADLINE_EXCEEDED,
    MemberOff: grpc.StatusCode.UNAVAILABLE,
}
BREAKERS: dict[str, dict[str, Any]] = {
    "breakers that open": {  # of a member that is stuck, not where the whole process stands still for a moment
        "breaker_window": 8, "breaker_failures": 4, "breaker_stall_seconds": 1.0, "breaker_retry_seconds": 0.1
    },
    "no breakers": {"breaker_failures": 0, "breaker_stall_seconds": 3600.0},
}  # fmt: skip


class Flaky(Opinion):
    """An opinion that raises in every other call, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_flaky = False
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        if self.is_flaky and self._calls % 2:
            raise RuntimeError("not this time")
        answer: Tensor = super().forward(x)
        return answer


@dataclass(frozen=True, slots=True)
class Sickness:
    """How a member misbehaves: what begins and ends it, what it is sent, and what may become of it for a request."""

    begin: Callable[[Flaky], AbstractContextManager[None]]
    sick_input: float
    states: frozenset[str]
    error: type[TwinferError]
    causes: tuple[str, ...]


@contextmanager
def raising(model: Flaky) -> Iterator[None]:
    model.error = RuntimeError("broken")
    yield
    model.error = None


@contextmanager
def answering_nan(model: Flaky) -> Iterator[None]:
    model.is_sick = True
    yield
    model.is_sick = False


@contextmanager
def flaky(model: Flaky) -> Iterator[None]:
    model.is_flaky = True
    yield
    model.is_flaky = False


SICKNESSES = {
    "stuck": Sickness(lambda model: model.held(), 1.0, frozenset({"LATE", "OFF"}), MemberLate, ("stream", "ready")),
    "raises": Sickness(raising, 1.0, frozenset({"FAILED", "OFF"}), MemberFailed, ("raised RuntimeError",)),
    "answers NaN": Sickness(
        answering_nan, 1.0, frozenset({"FAILED", "OFF"}), NotFinite, ("NaN or an infinity", "no output was finite")
    ),
    "fails half the time": Sickness(flaky, 1.0, frozenset({"OK", "FAILED", "OFF"}), MemberFailed, ("raised RuntimeError",)),
}


@dataclass(frozen=True, slots=True)
class Served:
    """A served pair of opinions, of which one can be made sick."""

    sick: Flaky
    client: Client

    def ask(self, x: float, sick: float, policy: str = "best_effort", timeout: float = DEADLINE_SECONDS) -> Response:
        inputs = {"sick": number(sick), "well": number(x)}
        return self.client.infer(inputs, policy=policy, member_predictions=True, timeout=timeout)  # type: ignore[arg-type]

    def ask_all(self, sick: float) -> list[Response]:
        """Ask with many callers at once; every call must be answered."""
        with ThreadPoolExecutor(CALLERS) as callers:
            return list(callers.map(lambda n: self.ask(n / 64, sick), range(CALLS)))


@contextmanager
def serving(folder: Path, head: str = "", **settings: Any) -> Iterator[Served]:
    sick = Flaky()
    write_members(folder, {"sick": sick, "well": Opinion()}, head, max_batch_size=CALLERS)
    with running(folder, trust_code=True, **settings) as server, Client(server.address, attempts=1) as client:
        yield Served(sick, client)


def own_predictions(answers: Sequence[Response], name: str) -> Tensor:
    """A member's own prediction for each request: [requests]."""
    predictions = [answer.members[name].prediction for answer in answers]
    assert all(prediction is not None for prediction in predictions)
    return torch.tensor([prediction.classes[0].probability for prediction in predictions if prediction is not None])


@pytest.mark.parametrize(
    ("execution", "deterministic", "breakers"),  # each pair of two values once
    [
        ("serial", False, "breakers that open"),
        ("serial", True, "no breakers"),
        ("streams", False, "no breakers"),
        ("streams", True, "breakers that open"),
    ],
)
@pytest.mark.parametrize("sickness", SICKNESSES.values(), ids=SICKNESSES)
def test_under_load_no_call_fails_and_the_other_members_answers_are_those_of_a_clean_run(
    tmp_path: Path, sickness: Sickness, execution: str, deterministic: bool, breakers: str
) -> None:
    head = f'execution = "{execution}"\ndeterministic = {str(deterministic).lower()}'
    errors = {"FAILED": sickness.error, "LATE": MemberLate, "OFF": MemberOff}
    with serving(tmp_path, head, **BREAKERS[breakers]) as served:
        clean = served.ask_all(1.0)
        assert {str(answer.members["sick"].state) for answer in clean} == {"OK"}
        with sickness.begin(served.sick):
            degraded = served.ask_all(sickness.sick_input)
        states = {str(answer.members["sick"].state) for answer in degraded}
        assert states <= sickness.states
        assert states != {"OK"}
        for answer in degraded:
            sick = answer.members["sick"]
            assert str(answer.members["well"].state) == "OK"
            assert answer.degraded == (str(sick.state) != "OK")
            assert (sick.error is None) if str(sick.state) == "OK" else isinstance(sick.error, errors[str(sick.state)])
        if deterministic:
            assert (own_predictions(degraded, "well") == own_predictions(clean, "well")).all()
        else:
            assert torch.allclose(own_predictions(degraded, "well"), own_predictions(clean, "well"), atol=1e-6)
        # Well again, it is asked again without an operator.
        next(None for _ in itertools.count() if str(served.ask(1.0, 1.0).members["sick"].state) == "OK")


@pytest.mark.parametrize("breakers", BREAKERS.values(), ids=BREAKERS)
@pytest.mark.parametrize("sickness", SICKNESSES.values(), ids=SICKNESSES)
def test_where_all_are_required_each_failed_call_names_member_stage_and_cause(
    tmp_path: Path, sickness: Sickness, breakers: dict[str, Any]
) -> None:
    # Enough for a breaker to open, and for several batches; without breakers all wait for a stuck member until their deadline.
    count = CALLS if breakers["breaker_failures"] or "OK" in sickness.states else CALLERS
    with serving(tmp_path, **breakers) as served, sickness.begin(served.sick), ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(served.ask, n / 64, sickness.sick_input, "require_all") for n in range(count)]
        failures = [call.exception() for call in calls]
        assert any(failures)
        for failure in failures:
            if failure is not None:
                assert isinstance(failure, sickness.error | MemberOff)
                assert (failure.member, failure.stage) == ("sick", Stage.MEMBER)
                assert failure.code is CODES[type(failure)]
                assert any(part in failure.text for part in sickness.causes)
        has_opened = any(isinstance(failure, MemberOff) for failure in failures)
        assert has_opened <= bool(breakers["breaker_failures"])
        assert has_opened or not breakers["breaker_failures"] or "OK" in sickness.states

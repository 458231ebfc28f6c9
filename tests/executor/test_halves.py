"""Halves: where a member raises on a batch, only the requests at which it raises fail, whoever is beside them and wherever."""

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.batches import form, launch, load_warm, make_request, member_states
from tests.models import number, register, write_members
from tests.recording import RecordingDevice
from tests.servers import write_ensemble
from twinfer_server.device import CpuDevice, Device
from twinfer_server.errors import MemberFailed, TwinferError
from twinfer_server.executor import Batch, Ensemble, make_responses
from twinfer_server.executor.halves import compute_in_halves
from twinfer_server.types import Request, Response, State

POISON = 50.0
MOST = 8

# --- the search by itself ---------------------------------------------------------------------------------------------------


class Bench:
    """A member that raises on some requests, on its own sample where `is_broken`, and from some computation on on everything."""

    def __init__(self, poison: Sequence[int] = (), is_broken: bool = False, loss_after: int | None = None) -> None:
        self.poison, self.is_broken, self.loss_after = set(poison), is_broken, loss_after
        self.parts: list[tuple[int, ...]] = []
        self.answered: list[int] = []

    def compute(self, indices: Sequence[int]) -> None:
        self.parts.append(tuple(indices))
        if self.is_lost() or not self.poison.isdisjoint(indices):
            raise ValueError(f"poison in {indices}")
        self.answered += indices

    def compute_own(self) -> None:
        self.parts.append(())
        if self.is_broken:
            raise ValueError("poison everywhere")

    def is_lost(self) -> bool:
        return self.loss_after is not None and len(self.parts) > self.loss_after


@given(count=st.integers(1, 40), poison=st.sets(st.integers(0, 39)))
def test_what_a_member_raises_on_is_found_wherever_it_is_and_nothing_is_computed_twice_with_success(
    count: int, poison: set[int]
) -> None:
    bench = Bench(guilty := sorted(index for index in poison | {0} if index < count))
    found = compute_in_halves(range(count), ValueError(), bench.compute, bench.compute_own, bench.is_lost, lambda part: False)
    assert sorted(found.alone) == guilty
    assert sorted(bench.answered) == [index for index in range(count) if index not in guilty]
    assert (found.left, found.fault) == ({}, None)
    assert all(str(found.alone[index]) == f"poison in {(index,)}" for index in guilty if count > 1)
    assert found.computed == len(bench.parts) <= 2 * count - 2 + 1
    assert len(set(bench.parts)) == len(bench.parts)


@given(count=st.integers(1, 40))
def test_a_member_that_raises_on_its_own_sample_too_is_at_fault_and_soon_left_alone(count: int) -> None:
    bench = Bench(range(count), is_broken=True)
    error = ValueError("on all")
    found = compute_in_halves(range(count), error, bench.compute, bench.compute_own, bench.is_lost, lambda part: False)
    assert found.fault is not None
    assert found.computed <= 3


def test_a_member_that_answers_any_of_them_is_not_asked_for_a_sample_of_its_own() -> None:
    bench = Bench([3], is_broken=True)
    found = compute_in_halves(range(8), ValueError(), bench.compute, bench.compute_own, bench.is_lost, lambda part: False)
    assert list(found.alone) == [3]
    assert found.fault is None


@pytest.mark.parametrize("loss_after", range(4))
def test_nothing_more_is_computed_on_a_device_that_is_lost(loss_after: int) -> None:
    bench = Bench([0, 5], loss_after=loss_after)
    found = compute_in_halves(range(8), ValueError(), bench.compute, bench.compute_own, bench.is_lost, lambda part: False)
    assert found.fault is not None
    assert len(bench.parts) <= loss_after + 1  # it shows after the part in which it was lost


def test_requests_that_nothing_waits_for_and_those_for_which_no_time_is_left_are_not_computed_again() -> None:
    bench = Bench([2, 6])
    found = compute_in_halves(
        range(8), ValueError(), bench.compute, bench.compute_own, bench.is_lost, lambda part: part == (4, 5, 6, 7)
    )
    assert sorted(found.left) == [4, 5, 6, 7]
    assert list(found.alone) == [2]
    assert sorted(bench.answered) == [0, 1, 3]


# --- in batches ---------------------------------------------------------------------------------------------------------------


class Picky(nn.Module):
    """Answers the logits [x, -x] and the features [x, 7], and raises on a batch with an x of POISON or more."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.error is not None:
            raise self.error
        if (x >= POISON).any():
            raise ValueError("no such number")
        return {"logits": torch.cat([x, -x], dim=1), "features": torch.cat([x, torch.full_like(x[:, :1], 7.0)], dim=1)}


class Head(nn.Module):
    """Answers the feature f and its own y with the logits [f + y, -f - y]; raises on a POISON, and once loaded on no features."""

    is_loaded = False

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        if (y >= POISON).any() or (self.is_loaded and (features[:, 1] == 0.0).any()):
            raise ValueError("no such number")
        return torch.cat([features[:, :1] + y, -features[:, :1] - y], dim=1)


def table(name: str, model: nn.Module, inputs: Mapping[str, str], output: str = 'select = "logits"') -> str:
    lines = [f"[members.{name}]", f'model = "{register(model)}"']
    for key, keys in inputs.items():
        lines += [f"[members.{name}.input.{key}]", keys]
    return "\n".join([*lines, f"[members.{name}.output]", output, ""])


NUMBER = 'kind = "tensor"\ndtype = "float32"\nshape = [1]'
HEAD = 'name = "picky"\nversion = 1\npolicy = "best_effort"\ntask = "{task}"\n'
TAIL = f'[fusion]\nmethod = "{{method}}"\n[batching]\nmax_batch_size = {MOST}\n'


def write_pair(folder: Path, head: str = "") -> Path:
    members = "".join(table(name, Picky(), {name: NUMBER}) for name in ("left", "right"))
    return write_ensemble(folder, HEAD.format(task="classification") + head + members + TAIL.format(method="weighted_mean"))


def write_chain(folder: Path) -> Path:
    members = table("left", Picky(), {"left": NUMBER})
    upstream = 'kind = "output"\nmember = "left"\nselect = "features"'
    members += table("right", Head(), {"features": upstream, "right": NUMBER}, "select = 0")
    return write_ensemble(folder, HEAD.format(task="classification") + members + TAIL.format(method="weighted_mean"))


def write_several(folder: Path) -> Path:
    vector, several = NUMBER.replace("[1]", "[2]"), NUMBER.replace("[1]", "[2]") + "\nmax_samples = 3"
    output = 'kind = "embedding"\nselect = "features"'
    members = table("left", Picky(), {"left": vector}, output) + table("right", Picky(), {"right": several}, output)
    return write_ensemble(folder, HEAD.format(task="similarity") + members + TAIL.format(method="cosine"))


ENSEMBLES: Mapping[str, Callable[[Path], Path]] = {
    "two members": write_pair,
    "deterministic": lambda folder: write_pair(folder, "deterministic = true\n"),
    "a chain": write_chain,
    "several samples": write_several,
}
DEVICES: Mapping[str, Callable[[], Device]] = {
    "serial": lambda: CpuDevice(streams=2),
    "streams": lambda: CpuDevice(streams=2),
    "buffers apart": RecordingDevice,
}
Loaded = Mapping[tuple[str, str], Ensemble]


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    loaded = {}
    with ExitStack() as stack:
        for device, make in DEVICES.items():
            for name, write in ENSEMBLES.items():
                loaded[device, name] = ensemble = load_warm(write(tmp_path_factory.mktemp("picky")), make())
                ensemble.execution = "serial" if device == "serial" else "streams"
                stack.callback(ensemble.close)
        Head.is_loaded = True
        yield loaded
        Head.is_loaded = False


def ask(ensemble: Ensemble, left: float | None, right: Sequence[float]) -> Request:
    inputs = {} if left is None else {"left": number(left)}
    if ensemble.spec.task == "similarity":
        inputs = {"left": np.array([left or 1.0, 1.0], np.float32)}
        return make_request(ensemble, inputs | {"right": np.array([[x, 1.0] for x in right], np.float32)})
    return make_request(ensemble, inputs | {"right": number(right[0])})


def compute(ensemble: Ensemble, requests: Sequence[Request], buffer_set: int = 0) -> tuple[Batch, list[Response | TwinferError]]:
    """Compute a batch; the fusion on the device and that on the host give the same."""
    batch = launch(form(ensemble, requests, buffer_set=buffer_set))
    batch.completed.wait()
    assert batch.result is not None
    indices = range(len(requests))
    with torch.inference_mode():
        responses, again = (make_responses(batch, indices, fused, 0.0) for fused in (batch.result, batch.fuse(indices)))
    for one, other in zip(responses, again, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Response) and isinstance(other, Response):
            np.testing.assert_allclose(one.prediction, other.prediction, atol=1e-6)
    ensemble.release(batch)
    return batch, responses


Value = st.sampled_from([0.25, -0.5, 1.0, 0.75, POISON])
Asks = st.lists(st.tuples(Value | st.none(), st.lists(Value, min_size=1, max_size=3)), min_size=1, max_size=MOST)


def find_states(ensemble: Ensemble, left: float | None, right: Sequence[float]) -> list[State]:
    """Say what becomes of the members for a request, whatever is beside it."""
    is_chain = bool(ensemble.members[1].upstream)
    has_several = ensemble.spec.task == "similarity"
    right = right if has_several else right[:1]
    states = [State.FAILED if left == POISON else State.OK, State.FAILED if POISON in right else State.OK]
    if left is None and not has_several:
        states[0] = State.NO_INPUT
    if is_chain and states[0] is not State.OK:
        states[1] = states[0]
    return states


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=15)
@given(asks=Asks)
def test_only_the_requests_on_which_a_member_raises_fail_and_the_others_are_answered_as_they_are_alone(
    ensembles: Loaded, device: str, name: str, asks: list[tuple[float | None, list[float]]]
) -> None:
    ensemble = ensembles[device, name]
    if name == "a chain":
        asks = [(0.5 if left is None else left, right) for left, right in asks]
    if name == "several samples":  # for as many as the buffers hold
        asks = asks[: bisect.bisect_right(list(itertools.accumulate(len(right) for _, right in asks)), MOST)]
    batch, responses = compute(ensemble, [ask(ensemble, left, right) for left, right in asks])
    for (left, right), response in zip(asks, responses, strict=True):
        states = find_states(ensemble, left, right)
        _, [alone] = compute(ensemble, [ask(ensemble, left, right)], buffer_set=1)
        if isinstance(response, TwinferError):
            assert isinstance(alone, TwinferError)
            assert State.FAILED in states
            assert "the member raised ValueError" in response.text
            continue
        assert isinstance(alone, Response)
        assert member_states(response) == member_states(alone) == states
        if name == "deterministic":
            assert (response.prediction == alone.prediction).all()
        else:
            np.testing.assert_allclose(response.prediction, alone.prediction, atol=1e-6)
        for member in response.members:
            if member.state is State.FAILED:
                assert isinstance(member.error, MemberFailed)
                assert "the input of this request alone the member raised ValueError; the server's log has it" in member.error.text
    for run in batch.runs:
        own = [find_states(ensemble, *asks[index])[run.member.index] for index in run.indices]
        assert run.has_output == (State.OK in own)
        assert run.is_whole == (set(own) == {State.OK})
        assert run.fault == ("" if State.OK in own else None)
        assert run.retries <= 2 * len(run.indices) - 1


@pytest.mark.parametrize("device", ["serial", "buffers apart"])
def test_what_a_poisonous_batch_leaves_behind_in_the_buffers_harms_no_later_one(ensembles: Loaded, device: str) -> None:
    ensemble = ensembles[device, "deterministic"]  # where every batch is as large as the buffers
    compute(ensemble, [ask(ensemble, 0.5, [POISON]) for _ in range(MOST)])
    batch, [response] = compute(ensemble, [ask(ensemble, 0.5, [0.25])])
    assert isinstance(response, Response)
    assert not response.is_degraded
    assert [run.retries for run in batch.runs] == [0, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, MOST])
def test_a_member_that_raises_on_its_own_samples_too_fails_for_all_and_is_to_blame(tmp_path: Path, device: str, count: int) -> None:
    broken = Picky()
    members = table("left", broken, {"left": NUMBER}) + table("right", Picky(), {"right": NUMBER})
    tail = TAIL.format(method="weighted_mean")
    ensemble = load_warm(write_ensemble(tmp_path, HEAD.format(task="classification") + members + tail), DEVICES[device]())
    broken.error = RuntimeError("broken")
    batch, responses = compute(ensemble, [ask(ensemble, 0.5, [0.25])] * count)
    for response in responses:
        assert isinstance(response, Response)
        assert member_states(response) == [State.FAILED, State.OK]
        assert response.members[0].error is not None
        assert response.members[0].error.text == "the member raised RuntimeError; the server's log has it"
    assert [run.fault for run in batch.runs] == ["the member raised RuntimeError; the server's log has it", ""]
    ensemble.close()


def test_a_member_that_can_compute_only_so_many_at_once_is_refused_at_warm_up_and_helped_afterwards(tmp_path: Path) -> None:
    class Narrow(nn.Module):
        most = 100

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError(f"no room for {len(x)}")
            return torch.cat([x, -x], dim=1)

    narrow = Narrow()
    ensemble = load_warm(write_members(tmp_path, {"left": narrow, "right": Picky()}, max_batch_size=MOST), CpuDevice(streams=2))
    narrow.most = 2
    batch, responses = compute(ensemble, [ask(ensemble, 0.5, [0.25])] * MOST)
    assert not any(isinstance(response, TwinferError) or response.is_degraded for response in responses)
    assert [run.fault for run in batch.runs] == ["", ""]
    ensemble.close()

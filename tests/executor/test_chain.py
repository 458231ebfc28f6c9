"""Chains: a member that takes another one's output, in either execution, and what becomes of it when the other is not there."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import Tensor, nn

from tests.batches import compute, load_warm, make_request, member_states
from tests.calls import connect, disable_member
from tests.capturing import CapturingDevice
from tests.models import chance, edit_spec, first_chance, number, register, states
from tests.servers import RunningServer, running, write_ensemble
from twinfer import Client, TwinferError
from twinfer.errors import MemberOff
from twinfer_server.device import CpuDevice, Device, Execution
from twinfer_server.errors import InvalidEnsemble, InvalidOption
from twinfer_server.executor import Ensemble
from twinfer_server.types import Request, State

Mix = Sequence[tuple[float, float | None]]


class Encoder(nn.Module):
    """Answers the logits [x, -x], and the features [2x, 7] for others."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.error is not None:
            raise self.error
        return {"logits": torch.cat([x, -x], dim=1), "features": torch.cat([2 * x, torch.full_like(x, 7.0)], dim=1)}


class Head(nn.Module):
    """Answers the first feature f and an input of its own y with the logits [f + y, -f - y]; the second feature must be 7."""

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        value = features[:, :1] + y + (features[:, 1:] - 7.0)
        return torch.cat([value, -value], dim=1)


TOML = """
    name = "chain"
    version = 1
    task = "classification"
    policy = "best_effort"
    execution = "{execution}"

    [members.encoder]
    model = "{encoder}"
    [members.encoder.input.x]
    kind = "tensor"
    dtype = "float32"
    shape = [1]
    [members.encoder.output]
    select = "logits"

    [members.head]
    model = "{head}"
    [members.head.input.features]
    kind = "output"
    member = "encoder"
    select = "features"
    [members.head.input.y]
    kind = "tensor"
    dtype = "float32"
    shape = [1]

    [fusion]
    method = "weighted_mean"
    [batching]
    max_batch_size = 8
"""


def write_chain(folder: Path, encoder: Encoder | None = None, execution: Execution = "serial") -> Path:
    return write_ensemble(folder, TOML.format(encoder=register(encoder or Encoder()), head=register(Head()), execution=execution))


def make_chained(ensemble: Ensemble, mix: Mix) -> list[Request]:
    return [make_request(ensemble, {"x": number(x)} | ({} if y is None else {"y": number(y)})) for x, y in mix]


MIXES: dict[str, Mix] = {
    "one request": [(0.5, 0.25)],
    "a full batch": [(n / 8, n / 16) for n in range(8)],
    "three requests": [(0.25 * n, -0.5) for n in range(3)],
    "a request without the head's own input between others": [(0.5, 0.25), (1.0, None), (0.75, -0.5)],
}
DEVICES = {"computed": lambda: CpuDevice(streams=2), "replayed": CapturingDevice}


@pytest.fixture(scope="module", params=DEVICES)
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    device: Device = DEVICES[request.param]()
    ensemble = load_warm(write_chain(tmp_path_factory.mktemp("chain")), device)
    yield ensemble
    ensemble.close()


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_a_member_computes_on_what_its_upstream_member_gave_for_the_same_request(
    ensemble: Ensemble, execution: Execution, mix: Mix
) -> None:  # fmt: skip
    compute(ensemble, make_chained(ensemble, MIXES["a full batch"]), execution)  # leaves other features behind in the buffers
    for (x, y), answer in zip(mix, compute(ensemble, make_chained(ensemble, mix), execution), strict=True):
        assert answer.prediction[0] == pytest.approx(chance(x) if y is None else chance(x, 2 * x + y), abs=1e-6)
        assert member_states(answer) == [State.OK, State.NO_INPUT if y is None else State.OK]
        is_replayed = isinstance(ensemble.device, CapturingDevice)
        assert all(member.used_cuda_graph == is_replayed for member in answer.members if member.state is State.OK)


@contextmanager
def serving(folder: Path, execution: Execution = "serial") -> Iterator[tuple[Client, Encoder, RunningServer]]:
    encoder = Encoder()
    with (
        running(write_chain(folder, encoder, execution), trust_code=True, admin_listen="127.0.0.1:0") as server,
        Client(server.address, attempts=1) as client,
    ):
        yield client, encoder, server


@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_a_served_chain_answers_many_callers_and_a_member_fails_with_its_upstream_member_and_says_so(
    tmp_path: Path, execution: Execution
) -> None:
    with serving(tmp_path, execution) as (client, encoder, _), ThreadPoolExecutor(16) as callers:
        xs = [n / 64 for n in range(64)]
        for x, answer in zip(xs, callers.map(lambda x: client.infer({"x": number(x), "y": number(-x)}), xs), strict=True):
            assert first_chance(answer) == pytest.approx(chance(x, x), abs=1e-6)
        encoder.error = RuntimeError("broken")
        text = r"encoder: .*RuntimeError.*; head: it takes the output of the member encoder, which failed: .*RuntimeError"
        with pytest.raises(TwinferError, match=text):
            client.infer({"x": number(1.0), "y": number(0.0)})
        encoder.error = None
        assert states(client.infer({"x": number(1.0), "y": number(0.0)})) == {"encoder": "OK", "head": "OK"}


def test_without_its_upstream_member_a_member_cannot_answer_either_and_health_says_so(tmp_path: Path) -> None:
    with serving(tmp_path) as (client, _, server), connect(server.address) as channel:
        with pytest.raises(TwinferError, match="no member has all its inputs"):
            client.infer({"y": number(1.0)})
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        disable_member(server.admin_address, "encoder")
        with pytest.raises(MemberOff, match=r"encoder: the member is off .*; head: it takes the output of the member encoder: "):
            client.infer({"x": number(1.0), "y": number(0.0)})
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("upstream", ["nobody", "head"], ids=["a member that is not there", "the member itself"])
def test_an_upstream_member_must_stand_before_the_member(tmp_path: Path, upstream: str) -> None:
    folder = edit_spec(write_chain(tmp_path), 'member = "encoder"', f'member = "{upstream}"')
    with pytest.raises(InvalidEnsemble, match=rf"members.head.input.features.member: found '{upstream}'; allowed: .*'encoder'"):
        load_warm(folder, CpuDevice(streams=2))


def test_a_request_cannot_give_weight_to_a_member_that_is_not_fused(tmp_path: Path) -> None:
    folder = edit_spec(write_chain(tmp_path), 'select = "logits"', 'select = "logits"\nkind = "features"')
    processor = load_warm(folder, CpuDevice(streams=2)).processor
    text = r"options.fusion_weights\['encoder'\]: its output is of kind 'features'; allowed: members that are fused, \['head'\]"
    for weights in ({"encoder": 1.0}, {"encoder": 0.0, "head": 1.0}):
        with pytest.raises(InvalidOption, match=text):
            processor.read_weights(weights)
    own = processor.read_weights({"head": 0.5})
    assert own is not None
    assert own.tolist() == [0.0, 1.0]

"""Chains: a member that another member feeds, on every plan, and what becomes of it when the other is not there."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from torch import Tensor, nn

from tests.calls import connect
from tests.capturing import CapturingDevice
from tests.models import chance, first_chance, number, register, states
from tests.servers import running, write_ensemble
from twinfer import Client
from twinfer.errors import MemberOff
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc as admin_grpc
from twinfer.v1.ensemble_pb2 import BREAKER_STATE_DISABLED
from twinfer_server.device import CpuDevice, Device
from twinfer_server.errors import InvalidEnsemble, InvalidOption
from twinfer_server.executor import Ensemble, answer_rows, load_ensemble, warm_up
from twinfer_server.executor.warmup import _WarmUp
from twinfer_server.inputs import CropsInput, Feed, InputLimits
from twinfer_server.spec import CropsInputSpec
from twinfer_server.trust import Trust
from twinfer_server.types import InferRequest, Policy, Request
from twinfer_server.types import Response as ServerAnswer


class Encoder(nn.Module):
    """Answers the logits [x, -x], and the features [2x, 7] for others."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.gate.wait()
        if self.error is not None:
            raise self.error
        return {"logits": torch.cat([x, -x], dim=1), "features": torch.cat([2 * x, torch.full_like(x, 7.0)], dim=1)}


class Head(nn.Module):
    """Answers the first feature f and an input of its own y with the logits [f + y, -f - y]; no feature but the second may be 7."""

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
    member = "{feeder}"
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


def write_chain(folder: Path, encoder: Encoder, execution: str = "auto", feeder: str = "encoder") -> Path:
    toml = TOML.format(encoder=register(encoder), head=register(Head()), execution=execution, feeder=feeder)
    return write_ensemble(folder, toml)


def load(folder: Path, device: Device) -> Ensemble:
    ensemble = load_ensemble(folder, device, Trust(runs_any_code=True), InputLimits())
    warm_up(ensemble, None, lambda done, total: None)
    return ensemble


def fly(ensemble: Ensemble, xs: Sequence[tuple[float | None, float | None]], execution: str) -> list[ServerAnswer]:
    rows = []
    for x, y in xs:
        given = {name: number(value) for name, value in (("x", x), ("y", y)) if value is not None}
        request = InferRequest(given, arrived_at=0.0)
        rows.append(Request(request, Policy.BEST_EFFORT, None, float("inf"), samples=ensemble.prepare(request)))
    flying = {index for row in rows for index in row.crew}
    slots = {member.index: member.slots[0] for member in ensemble.members if member.index in flying}
    with torch.inference_mode():
        flight = ensemble.board(rows, slots, {}, execution)
        flight.launch()
        flight.landed.wait()
        assert flight.execution.name == execution
        assert flight.fused is not None
        answers = answer_rows(flight, rows, flight.fused, 0.0)
    assert all(isinstance(answer, ServerAnswer) for answer in answers)
    return [answer for answer in answers if isinstance(answer, ServerAnswer)]


MIXES: dict[str, list[tuple[float | None, float | None]]] = {
    "one row": [(0.5, 0.25)],
    "a full flight": [(n / 8, n / 16) for n in range(8)],
    "a row without the head's own input between others": [(0.5, 0.25), (1.0, None), (0.75, -0.5)],
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_a_fed_member_computes_on_what_its_feeder_gave_for_the_same_row(
    tmp_path: Path, execution: str, mix: list[tuple[float | None, float | None]]
) -> None:
    ensemble = load(write_chain(tmp_path, Encoder()), CpuDevice(lanes=2))
    for (x, y), answer in zip(mix, fly(ensemble, mix, execution), strict=True):
        assert x is not None
        expected = chance(x) if y is None else chance(x, 2 * x + y)
        assert answer.fused[0] == pytest.approx(expected, abs=1e-6)
        assert [member.state.name for member in answer.members] == ["OK", "NO_INPUT" if y is None else "OK"]


@pytest.mark.parametrize("execution", ["serial", "streams", "graph"])
def test_a_chain_of_fixed_size_is_captured(tmp_path: Path, execution: str) -> None:
    ensemble = load(write_chain(tmp_path, Encoder()), CapturingDevice())
    warmup = _WarmUp(ensemble)
    assert ensemble.times is not None
    with torch.inference_mode():
        for times in ensemble.times.measured:
            warmup._keep_capture(times.bucket, "graph")
    for mix in (MIXES["a full flight"], MIXES["one row"], [(0.25 * n, -0.5) for n in range(3)]):
        for (x, y), answer in zip(mix, fly(ensemble, mix, execution), strict=True):
            assert x is not None
            assert y is not None
            assert answer.fused[0] == pytest.approx(chance(x, 2 * x + y), abs=1e-6)
            assert all(member.used_cuda_graph for member in answer.members)


@contextmanager
def serving(folder: Path, execution: str) -> Iterator[tuple[Client, Encoder]]:
    encoder = Encoder()
    with running(write_chain(folder, encoder, execution), trust_code=True) as server, Client(server.address, attempts=1) as client:
        yield client, encoder


@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_served_chains_answer_many_callers(tmp_path: Path, execution: str) -> None:
    with serving(tmp_path, execution) as (client, _), ThreadPoolExecutor(16) as callers:
        xs = [n / 64 for n in range(64)]
        answers = list(callers.map(lambda x: client.infer({"x": number(x), "y": number(-x)}), xs))
        for x, answer in zip(xs, answers, strict=True):
            assert first_chance(answer) == pytest.approx(chance(x, x), abs=1e-6)


@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_a_member_whose_feeder_fails_fails_with_it_and_says_so(tmp_path: Path, execution: str) -> None:
    with serving(tmp_path, execution) as (client, encoder):
        encoder.error = RuntimeError("broken")
        with pytest.raises(Exception, match=r"encoder: .*broken.*; head: .*fed by the member encoder, which failed: .*broken"):
            client.infer({"x": number(1.0), "y": number(0.0)})
        encoder.error = None
        assert states(client.infer({"x": number(1.0), "y": number(0.0)})) == {"encoder": "OK", "head": "OK"}


def test_with_its_feeder_switched_off_a_member_cannot_answer_either_and_health_says_so(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, Encoder())
    with (
        running(folder, trust_code=True, admin_listen="127.0.0.1:0") as server,
        Client(server.address, attempts=1) as client,
        connect(server.address) as channel,
        connect(server.admin_address) as admin,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        request = admin_pb.SetMemberRequest(member="encoder", breaker_state=BREAKER_STATE_DISABLED)
        admin_grpc.EnsembleAdminServiceStub(admin).SetMember(request)
        with pytest.raises(MemberOff) as failure:
            client.infer({"x": number(1.0), "y": number(0.0)})
        assert failure.value.member == "encoder"
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_member_without_its_feeders_input_has_none_itself(tmp_path: Path) -> None:
    with serving(tmp_path, "auto") as (client, _), pytest.raises(Exception, match="no member has all its inputs"):
        client.infer({"y": number(1.0)})


@pytest.mark.parametrize("feeder", ["nobody", "head"], ids=["a member that is not there", "the member itself"])
def test_a_feeder_must_stand_before_the_member(tmp_path: Path, feeder: str) -> None:
    folder = write_chain(tmp_path, Encoder(), feeder=feeder)
    with pytest.raises(InvalidEnsemble, match=rf"members.head.input.features.member: found '{feeder}'; allowed: .*'encoder'"):
        load(folder, CpuDevice(lanes=2))


def test_crops_are_what_pillow_cuts_out() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    boxes = torch.tensor([[[0.25, 0.1, 0.75, 0.6, 0.9, 0], [0.0, 0.0, 0.1, 0.1, 0.4, 1], [0, 0, 1, 1, 0.0, 0]]])
    spec = CropsInputSpec(kind="crops", member="detector", size=[20, 30], max_crops=4, min_score=0.5)
    crops = CropsInput("crops", spec, 0, 3).take(Feed(boxes, {}, torch.from_numpy(image[None])))
    assert crops.shape == (4, 3, 20, 30)
    expected = np.asarray(Image.fromarray(image).crop((15, 4, 45, 24)), dtype=np.float32) / 255  # the box, pixel by pixel
    assert crops[0].permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-5)
    assert not crops[1:].any()  # below the score, without a score, not there


def test_crops_take_the_members_normalisation() -> None:
    spec = CropsInputSpec(kind="crops", member="detector", size=[2, 2], max_crops=1, mean=[0.5], std=[0.25])
    crops = CropsInput("crops", spec, 0, 1).take(
        Feed(torch.tensor([[[0.0, 0, 1, 1, 1, 0]]]), {}, torch.full((1, 4, 4, 1), 255, dtype=torch.uint8))
    )
    assert crops == pytest.approx(torch.full((1, 1, 2, 2), 2.0))


def test_a_request_cannot_give_weight_to_a_member_that_only_feeds_others(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, Encoder())
    spec = folder / "ensemble.toml"
    spec.write_text(spec.read_text().replace('select = "logits"', 'select = "logits"\nkind = "features"'))
    intake = load(folder, CpuDevice(lanes=2)).intake
    text = r"options.fusion_weights\['encoder'\]: its output is of kind 'features'; allowed: members that are fused, \['head'\]"
    for weights in ({"encoder": 1.0}, {"encoder": 0.0, "head": 1.0}):
        with pytest.raises(InvalidOption, match=text):
            intake.row_weights(weights)
    weights_of_head = intake.row_weights({"head": 0.5})
    assert weights_of_head is not None
    assert weights_of_head.tolist() == [0.0, 1.0]

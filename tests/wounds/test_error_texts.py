"""What callers are told of failures: nothing that names or opens anything of the machine.

CVE-2025-23319, CVE-2025-23320, CVE-2025-23334: an error's text of Triton's named a region of shared memory, through which its
process was then taken over.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import oip
from tests.calls import (
    BATCH_INFER,
    GET_ENSEMBLE,
    INFER,
    INFER_STREAM,
    Failure,
    batch_infer,
    call,
    connect,
    infer,
    read,
    send,
    stream,
)
from tests.models import Opinion, as_any, number, write_members
from tests.servers import RunningServer, running
from twinfer.requests import make_request
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2

SECRET = "/dev/shm/triton_python_backend_shm_region_4f2a"
ERROR = RuntimeError(f"cannot open {SECRET}: token=hunter2, at 0x7f61ee23fa10")
ADMIN = "/twinfer.v1.EnsembleAdminService"
PARTICULAR = re.compile(r"hunter2|0x[0-9a-f]{4}|/dev|/tmp|/home|/root|/usr|site-packages|\.py\b|Traceback|line \d+, in|<_io")


@dataclass(frozen=True, slots=True)
class Faulty:
    """A server with a member that a test lets raise."""

    server: RunningServer
    member: Opinion
    folder: Path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    member = Opinion()
    folder = write_members(tmp_path_factory.mktemp("private") / "of_the_operator", {"a": member, "b": Opinion()})
    with running(folder, trust_code=True, admin_listen="127.0.0.1:0", breaker_failures=0) as server:
        yield Faulty(server, member, folder)


@pytest.fixture
def callers(faulty: Faulty) -> Iterator[grpc.Channel]:
    with connect(faulty.server.address) as channel:
        yield channel


def make_row(**options: Any) -> pb.InferRequest:
    """Make a request for both members."""
    row = make_request({"a": number(1.0), "b": number(1.0)})
    row.options.MergeFrom(pb.InferOptions(**options))
    return row


def check(folder: Path, *texts: object) -> None:
    """Fail where a text says what is the operator's alone."""
    for text in map(str, texts):
        assert not PARTICULAR.search(text), text
        assert str(folder) not in text
        assert folder.parent.name not in text


def test_what_a_member_raises_stays_in_the_log(
    faulty: Faulty, callers: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    faulty.member.error = ERROR
    try:
        alone = infer(callers, make_row())
        best = infer(callers, make_row(policy=pb.POLICY_BEST_EFFORT))
        batch = batch_infer(callers, make_row(), make_row(policy=pb.POLICY_BEST_EFFORT))
        [streamed] = read(stream(callers, send(make_row())))
        by_oip = oip.infer(callers, oip.request("pair", [oip.raw("a", "FP32", [[1.0]]), oip.raw("b", "FP32", [[1.0]])]))
        [oip_streamed] = oip.stream(
            callers, [oip.request("pair", [oip.raw("a", "FP32", [[1.0]]), oip.raw("b", "FP32", [[1.0]])]).SerializeToString()]
        )
    finally:
        faulty.member.error = None
    assert isinstance(alone, Failure)
    assert "the member raised RuntimeError; the server's log has it" in alone.details
    check(faulty.folder, alone, best, batch, streamed, by_oip, oip_streamed)
    assert f"RuntimeError: {ERROR}" in caplog.text


def test_what_is_served_is_described_without_where_it_lies(faulty: Faulty, callers: grpc.Channel) -> None:
    found = call(callers, GET_ENSEMBLE, b"")
    assert isinstance(found, bytes)
    check(faulty.folder, pb.GetEnsembleResponse.FromString(found))


def test_faults_of_requests_say_nothing_but_what_was_sent_and_what_is_allowed(faulty: Faulty, callers: grpc.Channel) -> None:
    bad = [
        pb.InferRequest(),
        pb.InferRequest(ensemble="x"),
        pb.InferRequest(inputs={"a": pb.Input()}),
        pb.InferRequest(inputs={"a": pb.Input(text="x")}),
        pb.InferRequest(inputs={"a": pb.Input(tensor=tensor_pb2.Tensor(dtype=as_any(99)))}),
        pb.InferRequest(inputs={"a": pb.Input(image=b"\x89PNG\r\n\x1a\n")}),
        make_row(top_k=99),
        make_row(fusion_weights={"x": 1.0}),
        make_row(policy=99),
    ]
    for row in bad:
        message = row.SerializeToString()
        failures = [call(callers, INFER, message), call(callers, INFER, b"\xff" + message)]
        assert all(isinstance(failure, Failure) for failure in failures)
        check(faulty.folder, *failures, *read(stream(callers, send(row))))
    for method in (BATCH_INFER, oip.MODEL_INFER, INFER_STREAM.replace("Stream", "Flow"), f"{oip.SERVICE}/SystemSharedMemoryStatus"):
        failure = call(callers, method, b"\xff\xff")
        assert isinstance(failure, Failure)
        check(faulty.folder, failure)


def test_regions_of_shared_memory_cannot_be_asked_for_at_all(callers: grpc.Channel) -> None:
    """CVE-2025-23319: callers registered, and read and wrote, what an error had named."""
    for name in ("SystemSharedMemoryRegister", "SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "RepositoryModelLoad"):
        failure = call(callers, f"{oip.SERVICE}/{name}", b"")
        assert isinstance(failure, Failure)
        assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    asked = oip.request("pair", [oip.raw("a", "FP32", [[1.0]])])
    asked.inputs[0].parameters["shared_memory_region"].string_param = SECRET
    failure = oip.infer(callers, asked)
    assert isinstance(failure, Failure)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


FITTED = {
    "missing": None,
    "no weights": b"x",
    "weights of something else": b"\x02\0\0\0\0\0\0\0{}",
    "a lie about sizes": b"\xff" * 16,
}


@pytest.mark.parametrize("content", FITTED.values(), ids=FITTED)
def test_operators_are_told_no_places_either(faulty: Faulty, content: bytes | None) -> None:
    file = faulty.folder / "fusion.safetensors"
    if content is not None:
        file.write_bytes(content)
    changes = [
        admin_pb.UpdateFusionRequest(fitted=True),
        admin_pb.UpdateFusionRequest(method="../x"),
        admin_pb.UpdateFusionRequest(weights={"../x": 1.0}),
    ]
    try:
        with connect(faulty.server.admin_address) as channel:
            for change in changes:
                failure = call(channel, f"{ADMIN}/UpdateFusion", change.SerializeToString())
                assert isinstance(failure, Failure)
                assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
                check(faulty.folder, failure)
            failure = call(channel, f"{ADMIN}/SetMember", admin_pb.SetMemberRequest(member="../x").SerializeToString())
            assert isinstance(failure, Failure)
            check(faulty.folder, failure)
    finally:
        file.unlink(missing_ok=True)


def test_an_unforeseen_error_is_one_fixed_sentence(
    faulty: Faulty, callers: grpc.Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    def raise_it(*arguments: Any) -> Any:
        raise ERROR

    monkeypatch.setattr("twinfer_server.rpc.infer_service.read_request", raise_it)
    monkeypatch.setattr("twinfer_server.rpc.oip.service.read_requests", raise_it)
    failures = [infer(callers, make_row()), oip.infer(callers, oip.request("pair", [oip.raw("a", "FP32", [[1.0]])]))]
    for failure in failures:
        assert isinstance(failure, Failure)
        assert (failure.code, failure.details) == (grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
        check(faulty.folder, failure)
    assert caplog.text.count(SECRET) >= len(failures)

"""What a failed call raises: the class, the code, the reason and the text."""

from typing import Any

import grpc
import pytest

from tests.scripted import Caller, ScriptedService, failing
from twinfer import MemberState, Reason, Stage, errors
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import error_pb2

KEY = "twinfer-error-bin"


@pytest.mark.parametrize(
    ("ours", "contract", "prefix"),
    [(Reason, error_pb2.Reason, "REASON_"), (Stage, error_pb2.Stage, "STAGE_"), (MemberState, pb.MemberState, "MEMBER_STATE_")],
    ids=["Reason", "Stage", "MemberState"],
)
def test_the_enums_are_the_contracts_own(ours: Any, contract: Any, prefix: str) -> None:
    assert {prefix + name for name in ours} == set(contract.keys())


def tree(root: type[Exception]) -> dict[str, str]:
    """Return the names of the classes below a class, each with its parent's."""
    found = {child.__name__: root.__name__ for child in root.__subclasses__()}
    for child in root.__subclasses__():
        found |= tree(child)
    return found


WITH_REASON = [
    kind for kind in (getattr(errors, name) for name in tree(errors.TwinferError)) if kind.default_reason is not Reason.UNSPECIFIED
]


@pytest.mark.parametrize("kind", WITH_REASON, ids=lambda kind: kind.__name__)
def test_a_reason_picks_the_class(kind: type[errors.TwinferError], caller: Caller, service: ScriptedService) -> None:
    message = error_pb2.Error(
        code=kind.default_code.value[0],
        reason=f"REASON_{kind.default_reason}",
        member="vision",
        stage="STAGE_QUEUE",
        text="field, found, allowed",
    )
    service.script = failing(kind.default_code, "short", ((KEY, message.SerializeToString()),))
    with pytest.raises(errors.TwinferError) as caught:
        caller.infer(service.address)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.member) == (kind.default_code, kind.default_reason, "vision")
    assert (error.stage, error.text, str(error)) == (Stage.QUEUE, "field, found, allowed", "field, found, allowed")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.UnknownEnsemble),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (grpc.StatusCode.DATA_LOSS, errors.TwinferError),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else "",
)
def test_a_bare_status_picks_the_class_by_its_code(
    code: grpc.StatusCode, kind: type[errors.TwinferError], caller: Caller, service: ScriptedService
) -> None:
    service.script = failing(code, "from a proxy")
    with pytest.raises(kind) as caught:
        caller.infer(service.address)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason, caught.value.text) == (code, Reason.UNSPECIFIED, "from a proxy")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        pytest.param(b"\xff", "from the status", id="a damaged error message"),
        pytest.param(error_pb2.Error(code=5, reason=99, text="new").SerializeToString(), "new", id="a reason of a newer server"),  # type: ignore[arg-type]
    ],
)
def test_without_a_known_reason_the_code_picks_the_class(
    caller: Caller, service: ScriptedService, metadata: bytes, said: str
) -> None:
    service.script = failing(grpc.StatusCode.NOT_FOUND, "from the status", ((KEY, metadata),))
    with pytest.raises(errors.UnknownEnsemble, match=said) as caught:
        caller.infer(service.address)
    assert caught.value.reason is Reason.UNSPECIFIED


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("infer", [{"text": "fve"}]), ("infer_batch", [[{"text": "fve"}]]), ("infer_many", [[{"text": "fve"}]]), ("describe", [])],
    ids=["infer", "infer_batch", "infer_many", "describe"],
)
def test_a_refused_connection_is_unavailable_and_says_where(
    caller: Caller, refused_address: str, method: str, arguments: list[Any]
) -> None:  # fmt: skip
    call = caller.infer_many if method == "infer_many" else lambda *given: caller.call(method, *given)
    with pytest.raises(errors.Unavailable, match=refused_address) as caught:
        call(refused_address, *arguments)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.UNSPECIFIED)

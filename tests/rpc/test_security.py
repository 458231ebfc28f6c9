"""Who is let in, and to what: roles by RPC, headers that are no token, files that change, certificates, and the audit log."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests import oip
from tests.calls import (
    BATCH_INFER,
    GET_ENSEMBLE,
    INFER,
    INFER_STREAM,
    PATIENCE_SECONDS,
    Failure,
    Outbox,
    connect,
    ids,
    read,
    read_failure,
    send,
)
from tests.certificates import NAMES, Authority, replace
from tests.frames import has_answer
from tests.gated import make_gated, write_gated
from tests.models import as_any
from tests.secured import EVERYONE, TOKENS, Header, bearer, digest, entry
from tests.servers import RunningServer, count, running, scrape
from twinfer.v1 import ensemble_admin_service_pb2, ensemble_service_pb2, error_pb2
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.auth_file import AuthFile
from twinfer_server.logs import JsonLines
from twinfer_server.rpc.interceptors import HEALTH_METHODS
from twinfer_server.rpc.oip import grpc_service_pb2
from twinfer_server.rpc.oip.service import INFERENCE_SERVICE, UNSUPPORTED
from twinfer_server.rpc.security import DENIED_TEXT, ROLES, UNAUTHENTICATED_TEXT
from twinfer_server.settings import InvalidSettings, ServerSettings, read_settings

pause = threading.Event()
"""Never set: what waits for a moment waits for it."""
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SET_MEMBER = "/twinfer.v1.EnsembleAdminService/SetMember"
HEALTH = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True, slots=True)
class Secured:
    """A server that knows its callers, and the file that names them."""

    server: RunningServer
    file: Path

    def channels(self) -> Mapping[str, grpc.Channel]:
        return {"callers": connect(self.server.address), "operators": connect(self.server.admin_address)}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    file = folder / "callers.toml"
    file.write_text(EVERYONE)
    write_gated(folder / "gated")
    local = "127.0.0.1:0"
    with running(folder / "gated", trust_code=True, admin_listen=local, metrics_listen=local, auth_file=file) as server:
        yield Secured(server, file)


@pytest.fixture
def callers(secured: Secured) -> Iterator[grpc.Channel]:
    with connect(secured.server.address) as channel:
        yield channel


@pytest.fixture
def operators(secured: Secured) -> Iterator[grpc.Channel]:
    with connect(secured.server.admin_address) as channel:
        yield channel


def ask(channel: grpc.Channel, method: str, metadata: Sequence[Header] = (), message: bytes = b"") -> Failure | list[bytes]:
    """Call any method, unary ones too, with one message."""
    try:
        return list(begin_stream(channel, method, [message], metadata))
    except grpc.RpcError as failure:
        return read_failure(failure)


def begin_stream(channel: grpc.Channel, method: str, messages: Iterable[bytes], metadata: Sequence[Header]) -> Any:
    """Begin an RPC stream; and return its call."""
    to_bytes: Any = channel.stream_stream(method)
    return to_bytes(iter(messages), timeout=PATIENCE_SECONDS, metadata=tuple(metadata))


def answer_of(channel: grpc.Channel, method: str, metadata: Sequence[Header], message: bytes) -> bytes:
    """Call a method that is answered with one message."""
    found = ask(channel, method, metadata, message)
    assert isinstance(found, list)
    return found[0]


def code_of(found: Failure | list[bytes]) -> grpc.StatusCode:
    return found.code if isinstance(found, Failure) else grpc.StatusCode.OK


# --- roles ------------------------------------------------------------------------------------------------------------

FILES = (ensemble_service_pb2, ensemble_admin_service_pb2, grpc_service_pb2, reflection_pb2, health_pb2)
SERVICES: dict[str, ServiceDescriptor] = {
    service.full_name: service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()
}
METHODS = sorted(f"/{name}/{method.name}" for name, service in SERVICES.items() for method in service.methods)
ANYONE = {"none", "infer", "operate", "observe"}
EXPECTED: dict[str, set[str]] = {
    "Infer": {"infer"}, "BatchInfer": {"infer"}, "InferStream": {"infer"}, "ModelInfer": {"infer"}, "ModelStreamInfer": {"infer"},
    "UpdateFusion": {"operate"}, "RollbackFusion": {"operate"}, "SetMember": {"operate"},
    "CaptureTimeline": {"operate", "observe"}, "Check": ANYONE, "List": ANYONE, "Watch": ANYONE,
}  # fmt: skip
"""Who may call what; all else may be called by every caller with a name."""


def list_services(channel: grpc.Channel) -> set[str]:
    """Ask reflection which services a listener has."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    reply = answer_of(channel, REFLECTION, bearer("observe-token"), request.SerializeToString())
    response = reflection_pb2.ServerReflectionResponse.FromString(reply)
    return {service.name for service in response.list_services_response.service} | {"grpc.reflection.v1alpha.ServerReflection"}


def test_every_rpc_of_every_service_on_the_listeners_has_its_roles(callers: grpc.Channel, operators: grpc.Channel) -> None:
    served = list_services(callers) | list_services(operators)
    assert served == set(SERVICES), "say here and in ROLES what the new service's RPCs need"
    assert ROLES.keys() - {f"/{INFERENCE_SERVICE}/{name}" for name in UNSUPPORTED} | HEALTH_METHODS == set(METHODS)


@pytest.mark.parametrize("who", ["none", *TOKENS])
def test_each_role_may_call_what_the_table_says_and_nothing_else(
    who: str, callers: grpc.Channel, operators: grpc.Channel
) -> None:  # fmt: skip
    found: dict[str, grpc.StatusCode] = {}
    for method in METHODS:
        if method.endswith("/Watch"):  # never ends
            continue
        channel = operators if "Admin" in method else callers
        found[method] = code_of(ask(channel, method, bearer(TOKENS[who]) if who in TOKENS else ()))
    refusal = grpc.StatusCode.UNAUTHENTICATED if who == "none" else grpc.StatusCode.PERMISSION_DENIED
    refused = {
        method for method, code in found.items() if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    }
    allowed = {method for method in found if who in EXPECTED.get(method.rpartition("/")[2], ANYONE - {"none"})}
    assert refused == found.keys() - allowed
    assert {found[method] for method in refused} == {refusal} - ({refusal} if not refused else set())


@pytest.mark.parametrize("listener", ["callers", "operators"])
def test_health_needs_no_token_on_either_listener_and_reflection_does(secured: Secured, listener: str) -> None:
    with secured.channels()[listener] as channel:
        assert isinstance(ask(channel, HEALTH), list)
        watch: Any = as_any(channel).unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=PATIENCE_SECONDS)
        assert next(iter(watch)) == b"\x08\x01"
        watch.cancel()
        assert code_of(ask(channel, REFLECTION)) is grpc.StatusCode.UNAUTHENTICATED


def test_a_caller_with_the_role_is_answered(callers: grpc.Channel) -> None:
    reply = answer_of(callers, INFER, bearer("infer-token"), make_gated().SerializeToString())
    assert pb.InferResponse.FromString(reply).prediction.classification.classes[0].label == "c"


# --- ways around ------------------------------------------------------------------------------------------------------

GOOD = "infer-token"


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", GOOD)],
        [("authorization", f"Bearer {GOOD}x")],
        [("authorization", f"Bearer {GOOD[:-1]}")],
        [("authorization", f"Bearer {GOOD.upper()}")],
        [("authorization", f"Bearer {digest(GOOD)}")],
        [("authorization", f"Bearer {digest(GOOD).removeprefix('sha256:')}")],
        [("authorization", f"Basic {GOOD}")],
        [("authorization", f"Bearer{GOOD}")],
        [("authorization", f"Bearer {GOOD} {GOOD}")],
        [("authorization", f"Bearer {GOOD}, Bearer {GOOD}")],
        [("authorization", f"Bearer {GOOD}"), ("authorization", f"Bearer {GOOD}")],
        [("authorization", "Bearer no"), ("authorization", f"Bearer {GOOD}")],
        [("authorization", f"Bearer {GOOD}"), ("authorization", "")],
        [("authorization-bin", f"Bearer {GOOD}".encode())],
        [("x-authorization", f"Bearer {GOOD}")],
        [("proxy-authorization", f"Bearer {GOOD}")],
        [("cookie", f"authorization=Bearer {GOOD}")],
    ],
    ids=lambda metadata: "; ".join(f"{key}: {value!r}" for key, value in metadata) or "no header",
)
def test_what_is_no_token_is_refused_and_never_told_why(callers: grpc.Channel, metadata: list[Header]) -> None:
    for method in (INFER, INFER_STREAM, "/twinfer.v1.EnsembleService/NoSuchMethod"):
        found = ask(callers, method, metadata)
        assert isinstance(found, Failure)
        assert (found.code, found.details, found.reason) == (
            grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED_TEXT, "UNAUTHENTICATED",
        )  # fmt: skip
        assert found.error.text == UNAUTHENTICATED_TEXT


@pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "Bearer {} "])
def test_the_scheme_may_be_written_any_way_and_spaces_do_no_harm(callers: grpc.Channel, value: str) -> None:
    assert isinstance(ask(callers, GET_ENSEMBLE, [("authorization", value.format(GOOD))]), list)


@pytest.mark.parametrize(
    "method",
    [
        "/twinfer.v1.EnsembleService/infer",
        "/TWINFER.V1.ENSEMBLESERVICE/INFER",
        "/twinfer.v1.EnsembleService/Infer/",
        "//twinfer.v1.EnsembleService/Infer",
        "/twinfer.v1.EnsembleService/Infer?a=b",
        "/twinfer.v1.EnsembleService/%49nfer",
        "/grpc.health.v1.Health/../twinfer.v1.EnsembleService/Infer",
        "/grpc.health.v1.Health/Check/twinfer.v1.EnsembleService/Infer",
        "/grpc.health.v1.Health/check",
        "/grpc.health.v1.Health/NoSuchMethod",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/modelinfer",
        "twinfer.v1.EnsembleService/Infer",
        "/",
        "/x",
    ],
)
def test_a_method_by_another_name_is_refused_without_a_token_and_does_not_exist_with_one(
    callers: grpc.Channel, method: str
) -> None:
    assert code_of(ask(callers, method)) is grpc.StatusCode.UNAUTHENTICATED
    assert code_of(ask(callers, method, bearer(GOOD))) is grpc.StatusCode.UNIMPLEMENTED


def test_an_rpc_that_the_table_does_not_have_cannot_be_called(callers: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(ask(callers, GET_ENSEMBLE, bearer(GOOD)), list)
    monkeypatch.delitem(as_any(ROLES), GET_ENSEMBLE)
    assert code_of(ask(callers, GET_ENSEMBLE, bearer(GOOD))) is grpc.StatusCode.UNIMPLEMENTED


def test_operators_rpcs_are_not_on_the_callers_listener(callers: grpc.Channel) -> None:
    assert code_of(ask(callers, SET_MEMBER, bearer("operate-token"))) is grpc.StatusCode.UNIMPLEMENTED


def test_a_role_that_does_not_do_is_told_one_sentence(operators: grpc.Channel) -> None:
    found = ask(operators, SET_MEMBER, bearer("infer-token"))
    assert isinstance(found, Failure)
    assert (found.code, found.details, found.reason) == (grpc.StatusCode.PERMISSION_DENIED, DENIED_TEXT, "PERMISSION_DENIED")


def test_a_call_is_refused_before_its_message_has_come(secured: Secured) -> None:
    assert not has_answer(secured.server.address, INFER, [("authorization", "Bearer no")], is_whole=False)


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ([("authorization", f"Bearer {GOOD}")], True),
        ([("Authorization", f"Bearer {GOOD}")], False),
        ([("AUTHORIZATION", f"Bearer {GOOD}")], False),
        ([("authorization", ""), ("Authorization", f"Bearer {GOOD}")], False),
        ([("authorization", f"Bearer\t{GOOD}")], False),
        ([("authorization", f"Bearer {GOOD}"), ("authorization", f"Bearer {GOOD}")], False),
        ([("authorization", f"Bearer {GOOD}\r\nx: y")], False),
    ],
    ids=str,
)
def test_headers_that_no_client_would_send_get_no_answer(
    secured: Secured, headers: list[tuple[str, str]], is_answered: bool
) -> None:
    assert has_answer(secured.server.address, GET_ENSEMBLE, headers) is is_answered


@pytest.mark.parametrize("path", [INFER, HEALTH, "/metrics"])
def test_http_1_gets_no_answer_whatever_it_shows(secured: Secured, path: str) -> None:
    host, _, port = secured.server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as plain:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nAuthorization: Bearer {GOOD}\r\n"
        plain.sendall(f"{head}Content-Length: 5\r\n\r\n".encode() + bytes(5))
        reply = b"".join(iter(lambda: plain.recv(4096), b""))
    assert b"HTTP/1" not in reply


# --- the file changes -------------------------------------------------------------------------------------------------


@pytest.fixture
def changing(secured: Secured) -> Iterator[Callable[[str], None]]:
    """Write other callers into the server's file; in the end those of before are back."""

    def change(text: str) -> None:
        secured.file.write_text(text)

    yield change
    secured.file.write_text(EVERYONE)


def test_a_revoked_token_ends_its_open_streams_and_no_others(
    secured: Secured, callers: grpc.Channel, changing: Callable[[str], None]
) -> None:  # fmt: skip
    outbox, kept = Outbox(), Outbox()
    changing(EVERYONE + entry("second", "infer", "second") + entry("third", "infer", "third"))
    wait_for(lambda: isinstance(ask(callers, GET_ENSEMBLE, bearer("third")), list))
    gone, staying = (
        begin_stream(callers, INFER_STREAM, box, bearer(token)) for box, token in ((outbox, "second"), (kept, "third"))
    )
    reflecting = begin_stream(callers, REFLECTION, Outbox(), bearer("second"))
    for box, stream in ((outbox, gone), (kept, staying)):
        box.put(make_gated(request_id="1"))
        assert ids(read([next(stream)])) == ["1"]
    changing(EVERYONE + entry("other", "infer", "second") + entry("third", "infer", "third"))  # another's token by now
    for stream in (gone, reflecting):
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert read_failure(ended.value).code is grpc.StatusCode.UNAUTHENTICATED
    kept.put(make_gated(request_id="2"))
    assert ids(read([next(staying)])) == ["2"]
    changing(EVERYONE + entry("third", "observe", "third"))
    with pytest.raises(grpc.RpcError) as ended:
        next(staying)
    assert read_failure(ended.value).reason == "PERMISSION_DENIED"
    assert code_of(ask(callers, INFER, bearer("third"))) is grpc.StatusCode.PERMISSION_DENIED
    outbox.close()
    kept.close()


def wait_for(is_true: Callable[[], bool]) -> None:
    """Ask until it is so; the server looks at its file once a second."""
    for _ in range(1000):
        if is_true():
            return
        pause.wait(0.02)
    raise AssertionError("it never came to be so")


def test_a_file_that_is_broken_or_gone_changes_nothing_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(EVERYONE)
    file = AuthFile(path, ServerSettings())
    assert not file.look()
    for broken in ("[callers", entry("web", "admin", "x"), "", "callers = {}"):
        caplog.clear()
        path.write_text(broken)
        assert [file.look(), file.look()] == [False, False]
        assert len(caplog.records) == 1
        assert "the callers are those of before" in caplog.text
        assert file.callers.find_by_token(GOOD) is not None
    caplog.clear()
    path.unlink()
    assert [file.look(), file.look()] == [False, False]
    assert "cannot be read" in caplog.text
    assert len(caplog.records) == 1
    path.write_text(entry("web", "infer", "other"))
    assert file.look()
    assert file.callers.find_by_token(GOOD) is None
    assert file.callers.find_by_token("other") is not None


SHA = digest("x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "callers: found nothing; allowed: a value"),
        ("[callers]", "callers: found {}; allowed: Dictionary should have at least 1 item"),
        ("x = 1\n" + EVERYONE, "x: found 1; allowed: no key of this name"),
        ('[callers.web]\ntoken = "{sha}"', "callers.web.role: found nothing"),
        ('[callers.web]\nrole = "root"\ntoken = "{sha}"', "callers.web.role: found 'root'; allowed: 'infer', 'operate' or"),
        ('[callers.web]\nrole = "infer"\ntoken = "secret"', "callers.web.token.0: found 'secret'"),
        ('[callers.web]\nrole = "infer"\ntoken = 5', "callers.web.token: found 5; allowed: an array"),
        ('[callers.web]\nrole = "infer"', "callers.web: found neither a token nor a certificate"),
        ('[callers.anonymous]\nrole = "infer"\ntoken = "{sha}"', "not 'anonymous'"),
        ('[callers."a b"]\nrole = "infer"\ntoken = "{sha}"', "1 to 64 letters"),
        (entry("a", "infer", "x") + entry("b", "infer", "x"), "callers.b.token: found that of another caller"),
        (entry("web", "infer", "x", "requests_per_second = 0"), "callers.web.requests_per_second: found 0; allowed: "),
        (entry("web", "infer", "x", "requests_per_second = nan"), "finite number"),
        (entry("web", "infer", "x", "bytes_in_flight = 1.5"), "callers.web.bytes_in_flight: found 1.5"),
        (entry("web", "infer", "x", "requests_in_flight = true"), "callers.web.requests_in_flight: found True"),
        ('[callers.web]\nrole = "infer"\ncertificate = "web"', "tls_client_ca"),
        ("[callers", "not TOML"),
    ],
)  # fmt: skip
def test_a_fault_of_the_file_is_named_by_its_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(text.replace("{sha}", SHA))
    with pytest.raises(InvalidSettings) as refused:
        AuthFile(path, ServerSettings())
    assert str(refused.value).startswith(f"auth_file: {path}: ")
    assert said in str(refused.value)


def test_two_tokens_of_one_caller_do_while_one_replaces_the_other(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(f'[callers.web]\nrole = "infer"\ntoken = ["{digest("old")}", "{digest("new")}"]')
    callers = AuthFile(path, ServerSettings()).callers
    assert callers.find_by_token("old") == callers.find_by_token("new") is not None
    assert callers.find_by_token("") is None


@pytest.mark.parametrize(
    ("settings", "is_allowed"),
    [
        ({"listen": "127.0.0.1:0"}, True),
        ({"listen": "127.9.9.9:0"}, True),
        ({"listen": "[::1]:0"}, True),
        ({"listen": "localhost:0"}, True),
        ({"listen": "unix:/tmp/x"}, True),
        ({"listen": "0.0.0.0:0", "tls_cert": "c.pem", "tls_key": "k.pem"}, True),
        ({"listen": "0.0.0.0:0"}, False),
        ({"listen": "[::]:0"}, False),
        ({"listen": "10.0.0.1:0"}, False),
        ({"listen": "localhost.example.com:0"}, False),
        ({"listen": "127.0.0.1.example.com:0"}, False),
        ({"admin_listen": "0.0.0.0:0"}, False),
    ],
)
def test_tokens_on_a_listener_that_others_could_read_from_are_refused_at_start(settings: dict[str, str], is_allowed: bool) -> None:
    if is_allowed:
        assert read_settings(auth_file="callers.toml", **settings).auth_file == Path("callers.toml")
        return
    with pytest.raises(InvalidSettings, match=r"auth_file: .*listen is .* without TLS.*tls_cert and tls_key"):
        read_settings(auth_file="callers.toml", **settings)
    read_settings(**settings)


# --- limits, names, the audit log -------------------------------------------------------------------------------------


def test_a_caller_over_its_limits_is_refused_with_a_pushback_and_counted_under_its_name(
    secured: Secured, callers: grpc.Channel, changing: Callable[[str], None]
) -> None:  # fmt: skip
    changing(EVERYONE + entry("slow", "infer", "slow", "requests_per_second = 0.01"))
    wait_for(lambda: isinstance(ask(callers, GET_ENSEMBLE, bearer("slow")), list))
    message = make_gated().SerializeToString()
    assert isinstance(ask(callers, INFER, bearer("slow"), message), list)
    found = ask(callers, INFER, bearer("slow"), message)
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert 90_000 < int(found.pushback) <= 100_000
    together = pb.BatchInferRequest(requests=[make_gated()]).SerializeToString()
    assert code_of(ask(callers, BATCH_INFER, bearer("slow"), together)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    open_inference = oip.request("gated", [oip.raw("numbers", "FP32", [[0, 0, 9]])]).SerializeToString()
    assert code_of(ask(callers, oip.MODEL_INFER, bearer("slow"), open_inference)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    [streamed] = read([answer_of(callers, INFER_STREAM, bearer("slow"), *send(make_gated()))])
    assert streamed.error.reason == error_pb2.REASON_OVERLOADED
    assert isinstance(ask(callers, INFER, bearer(GOOD), message), list)
    ask(callers, INFER, bearer("nobody's"), message)
    ask(callers, INFER, bearer("observe-token"), message)
    samples = scrape(secured.server)
    for caller, code, at_least in (
        ("slow", "OK", 1), ("slow", "RESOURCE_EXHAUSTED", 1), ("infer-er", "OK", 1), ("anonymous", "UNAUTHENTICATED", 1),
        ("observe-er", "PERMISSION_DENIED", 1),
    ):  # fmt: skip
        assert count(samples, "twinfer_caller_requests_total", caller=caller, code=code) >= at_least
    names = {dict(labels)["caller"] for name, labels in samples if name == "twinfer_caller_requests_total"}
    assert names <= {"slow", "anonymous", "second", "third", *(f"{role}-er" for role in TOKENS)}


def test_a_caller_with_all_the_calls_that_it_may_have_leaves_some_to_the_others(secured: Secured) -> None:
    folder = secured.file.parent / "gated"
    with (
        running(folder, trust_code=True, auth_file=secured.file, max_concurrent_calls=8) as server,
        connect(server.address) as channel,
    ):
        boxes = [Outbox() for _ in range(7)]
        streams = [begin_stream(channel, INFER_STREAM, box, bearer(GOOD)) for box in boxes]
        for box, stream in zip(boxes, streams, strict=True):
            box.put(make_gated(request_id="1"))
            assert ids(read([next(stream)])) == ["1"]
        found = ask(channel, GET_ENSEMBLE, bearer(GOOD))
        assert isinstance(found, Failure)
        assert (found.code, found.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "calls: found 8 at once; allowed: 7")
        assert isinstance(ask(channel, GET_ENSEMBLE, bearer("observe-token")), list)


def test_who_changes_a_member_or_the_fusion_is_in_the_audit_log(operators: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "twinfer_server.audit")
    token = bearer("operate-token")
    for state in ("DISABLED", "CLOSED"):
        request = admin_pb.SetMemberRequest(member="numbers", breaker_state=f"BREAKER_STATE_{state}")
        assert isinstance(ask(operators, SET_MEMBER, token, request.SerializeToString()), list)
    update = admin_pb.UpdateFusionRequest(weights={"numbers": 3.0, "picture": 1.0})
    assert isinstance(ask(operators, "/twinfer.v1.EnsembleAdminService/UpdateFusion", token, update.SerializeToString()), list)
    ask(operators, SET_MEMBER, token, admin_pb.SetMemberRequest(member="nobody").SerializeToString())  # changes nothing
    back = "/twinfer.v1.EnsembleAdminService/RollbackFusion"
    assert isinstance(ask(operators, back, token, admin_pb.RollbackFusionRequest().SerializeToString()), list)
    records = [record for record in caplog.records if record.name == "twinfer_server.audit"]
    said = [record.getMessage() for record in records]
    assert said[:2] == [
        'operate-er changed member numbers from "CLOSED" to "DISABLED"',
        'operate-er changed member numbers from "DISABLED" to "CLOSED"',
    ]
    assert len(said) == 4
    assert not any("\n" in line for line in said)
    line = json.loads(JsonLines().format(records[2]))
    assert (line["caller"], line["changed"]) == ("operate-er", "fusion")
    assert line["after"]["version"] == line["before"]["version"] + 1
    assert line["after"]["weights"] == {"numbers": 3.0, "picture": 1.0}
    assert json.loads(JsonLines().format(records[3]))["after"] == line["before"]


# --- certificates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mutual:
    """A server that asks for certificates, and whose authority."""

    address: str
    authority: Authority
    files: dict[str, Path]
    """The server's certificate and key, which a test may replace."""

    def connect(self, common_name: str) -> grpc.Channel:
        """Connect with a certificate that the authority has issued."""
        self.authority.issue(common_name, NAMES)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        return grpc.secure_channel(self.address, self.authority.connect(common_name), options)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Mutual]:
    folder = tmp_path_factory.mktemp("mutual")
    files = {"tls_cert": folder / "server.pem", "tls_key": folder / "server.key"}
    replace(files, authority, "server")
    file = folder / "callers.toml"
    file.write_text('[callers.edge]\nrole = "infer"\ncertificate = "edge.example"\n' + entry("watcher", "observe", "watch"))
    tls = authority.serve(asks_clients=True) | files
    with running(write_gated(folder / "gated"), trust_code=True, auth_file=file, **tls) as server:
        yield Mutual(server.address, authority, files)


def test_the_subject_of_a_client_certificate_is_the_callers_name(mutual: Mutual) -> None:
    with mutual.connect("edge.example") as channel:
        message = make_gated().SerializeToString()
        assert isinstance(ask(channel, INFER, (), message), list)
        assert isinstance(ask(channel, INFER_STREAM, (), pb.InferStreamRequest(request=make_gated()).SerializeToString()), list)
        request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        assert isinstance(ask(channel, REFLECTION, (), request), list)
        assert code_of(ask(channel, REFLECTION, (), b"\xff")) is grpc.StatusCode.INVALID_ARGUMENT
        assert code_of(ask(channel, "/twinfer.v1.EnsembleService/NoSuchMethod")) is grpc.StatusCode.UNIMPLEMENTED
        # A token that is shown counts, and a wrong one is not made good by the certificate.
        assert code_of(ask(channel, INFER, bearer("watch"), message)) is grpc.StatusCode.PERMISSION_DENIED
        assert code_of(ask(channel, INFER, bearer("wrong"), message)) is grpc.StatusCode.UNAUTHENTICATED
        assert code_of(ask(channel, INFER, [("authorization", "")], message)) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("common_name", ["edge", "EDGE.EXAMPLE", "another server", "watcher"])
def test_a_certificate_with_another_subject_is_nobodys(mutual: Mutual, common_name: str) -> None:
    with mutual.connect(common_name) as channel:
        for method in (INFER, INFER_STREAM, GET_ENSEMBLE, REFLECTION, "/twinfer.v1.EnsembleService/NoSuchMethod"):
            found = ask(channel, method)
            assert isinstance(found, Failure)
            assert (found.code, found.details) == (grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED_TEXT)
        assert isinstance(ask(channel, HEALTH), list)


def test_names_by_certificate_and_by_token_do_on_one_server_also_once_its_own_certificate_is_another(mutual: Mutual) -> None:
    message = make_gated().SerializeToString()
    for name in ("server", "renewed"):
        replace(mutual.files, mutual.authority, name)
        with mutual.connect("edge.example") as named, mutual.connect("unnamed.example") as unnamed:
            assert isinstance(ask(named, INFER, (), message), list)
            assert isinstance(ask(unnamed, GET_ENSEMBLE, bearer("watch")), list)
            assert code_of(ask(unnamed, INFER, bearer("watch"), message)) is grpc.StatusCode.PERMISSION_DENIED
            assert code_of(ask(unnamed, INFER, (), message)) is grpc.StatusCode.UNAUTHENTICATED

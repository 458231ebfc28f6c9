"""Tokens on the callers' side: both clients, the commands, and `twinfer token new`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from tests.certificates import Authority
from tests.gated import make_gated, write_gated
from tests.scripted import Caller, ScriptedService
from tests.secured import EVERYONE
from tests.servers import RunningServer, running
from twinfer import Client
from twinfer.cli import app
from twinfer.errors import PermissionDenied, Reason, Unauthenticated
from twinfer_server.auth_file import AuthFile, Role
from twinfer_server.settings import ServerSettings

GOOD = {"token": "infer-token"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("secured")
    (folder / "callers.toml").write_text(EVERYONE)
    auth_file = folder / "callers.toml"
    with running(write_gated(folder / "gated"), trust_code=True, admin_listen="127.0.0.1:0", auth_file=auth_file) as found:
        yield found


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINFER_TOKEN", raising=False)


def test_a_client_with_a_token_may_call_every_method(caller: Caller, server: RunningServer) -> None:
    assert caller.call("infer", server.address, make_gated(), client=GOOD).label == "c"
    [outcome] = caller.call("infer_batch", server.address, [make_gated()], client=GOOD)
    assert outcome.response.label == "c"
    assert caller.call("describe", server.address, client=GOOD).name == "gated"
    with Client(server.address, token="infer-token") as client:
        assert [outcome.error for outcome in client.infer_many([make_gated(), make_gated()])] == [None, None]


def test_a_client_without_one_is_told_so_and_may_ask_for_health(caller: Caller, server: RunningServer) -> None:
    for wrong in ({}, {"token": "another"}):
        with pytest.raises(Unauthenticated, match="authorization: Bearer TOKEN") as refused:
            caller.call("infer", server.address, make_gated(), client=wrong)
        assert refused.value.reason is Reason.UNAUTHENTICATED
    caller.call("wait_until_ready", server.address)


def test_a_role_that_does_not_do_is_an_error_of_its_own(caller: Caller, server: RunningServer) -> None:
    with pytest.raises(PermissionDenied, match="role"):
        caller.call("infer", server.address, make_gated(), client={"token": "observe-token"})
    assert caller.call("describe", server.address, client={"token": "observe-token"}).name == "gated"


def test_a_proxy_that_refuses_is_understood_without_our_reason(caller: Caller, service: ScriptedService) -> None:
    def refuse(request: object, context: grpc.ServicerContext) -> object:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    service.script = refuse  # type: ignore[assignment]
    with pytest.raises(Unauthenticated, match="who are you"):
        caller.infer(service.address)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:50051",
        "example.com:50051",
        "localhost.example.com:1",
        "dns:///example.com:1",
        "ipv4:10.0.0.1:1",
        "[2001:db8::1]:1",
    ],
)
def test_no_token_is_sent_in_the_clear_to_another_machine(caller: Caller, target: str) -> None:
    with pytest.raises(ValueError, match="in the clear"):
        caller.call("infer", target, make_gated(), client=GOOD)


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "dns:///localhost:1", "unix:/tmp/none"])
def test_to_this_machine_a_token_may_go_in_the_clear(target: str) -> None:
    Client(target, token="infer-token").close()


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "a\r\nx: y", "päss", "a=b", " a"])
def test_what_cannot_be_a_token_is_refused_before_anything_is_sent(token: str) -> None:
    with pytest.raises(ValueError, match="characters") as refused:
        Client("localhost:1", token=token)
    assert len(token) < 3 or token not in str(refused.value)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RunningServer]:
    """A server with tokens and TLS, on addresses that need not be this machine's."""
    folder = tmp_path_factory.mktemp("encrypted")
    (folder / "callers.toml").write_text(EVERYONE)
    settings = authority.serve() | {"auth_file": folder / "callers.toml", "listen": "0.0.0.0:0", "admin_listen": "0.0.0.0:0"}
    with running(write_gated(folder / "gated"), trust_code=True, **settings) as found:
        yield found


def test_a_token_goes_over_tls_to_any_machine(encrypted: RunningServer, authority: Authority) -> None:
    secured: Any = {"credentials": authority.connect(), "options": [("grpc.ssl_target_name_override", "localhost")]}
    with Client(encrypted.address, token="infer-token", **secured) as client:
        assert client.infer(make_gated()).label == "c"
    with Client(encrypted.address, **secured) as client, pytest.raises(Unauthenticated):
        client.infer(make_gated())


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "NO_COLOR": "1", **environment})


def test_every_command_that_calls_takes_a_token(server: RunningServer, tmp_path: Path) -> None:
    for role in map(str, Role):
        (tmp_path / role).write_text(f"{role}-token\n")
    callers, operators = server.address, server.admin_address
    for role, *arguments in (
        ("observe", "describe", "--server", callers),
        ("infer", "infer", "--text", "x", "--server", callers),
        ("infer", "bench", callers, "--text", "x", "--seconds", "0.01", "--warm-up", "0", "--concurrency", "1"),
        ("observe", "fusion", "show", "--server", callers),
        ("operate", "fusion", "update", "--weight", "numbers=1", "--server", operators),
        ("operate", "fusion", "rollback", "--server", operators),
        ("operate", "member", "off", "picture", "--server", operators),
        ("operate", "member", "on", "picture", "--server", operators),
        ("observe", "timeline", "--seconds", "0.01", "-o", str(tmp_path / "trace.json"), "--server", operators),
    ):
        without = run(*arguments)
        assert without.exit_code == 1
        assert "UNAUTHENTICATED" in without.stderr
        by_file = run(*arguments, "--token-file", str(tmp_path / role))
        assert by_file.exit_code == 0, by_file.stderr
    assert run("describe", "--server", callers, TWINFER_TOKEN="observe-token").exit_code == 0


@pytest.mark.parametrize("command", ["describe", "bench", "member on"])
def test_a_commands_token_goes_over_tls_to_any_machine_and_nowhere_else(
    encrypted: RunningServer, authority: Authority, command: str
) -> None:
    arguments = {
        "describe": ("describe", "--server", encrypted.address),
        "bench": ("bench", encrypted.address, "--text", "x", "--seconds", "0.01", "--warm-up", "0", "--concurrency", "1"),
        "member on": ("member", "on", "picture", "--server", encrypted.admin_address),
    }[command]
    tls = ("--tls-ca", str(authority.ca), "--tls-server-name", "localhost")
    token = "operate-token" if command == "member on" else "infer-token"
    done = run(*arguments, *tls, TWINFER_TOKEN=token)
    assert done.exit_code == 0, done.output
    assert "UNAUTHENTICATED" in run(*arguments, *tls).stderr
    elsewhere = ["192.0.2.1:50051" if ":" in argument else argument for argument in arguments]
    plain = run(*elsewhere, TWINFER_TOKEN=token)
    assert plain.exit_code == 2
    assert "in the clear" in plain.stderr


def test_a_token_that_cannot_be_read_or_used_is_a_wrong_argument(server: RunningServer, tmp_path: Path) -> None:
    missing = run("describe", "--server", server.address, "--token-file", str(tmp_path / "none"))
    assert missing.exit_code == 2
    assert "cannot be read" in missing.stderr
    for command in (("describe",), ("member", "on", "x")):
        far = run(*command, "--server", "example.com:1", TWINFER_TOKEN="infer-token")
        assert far.exit_code == 2
        assert "in the clear" in far.stderr
        assert "infer-token" not in far.stderr


# --- twinfer token new ------------------------------------------------------------------------------------------------


def test_a_new_token_is_printed_once_and_the_servers_file_has_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    tokens = {}
    for name, role in (("web", "infer"), ("ops.eu-1", "operate")):
        made = run("token", "new", name, "--role", role, "--auth-file", str(file))
        assert (made.exit_code, made.stderr) == (0, "")
        tokens[name] = made.stdout.strip()
    assert len(set(tokens.values())) == 2
    assert all(len(token) >= 43 for token in tokens.values())
    assert not any(token in file.read_text() for token in tokens.values())
    callers = AuthFile(file, ServerSettings()).callers
    found = {name: callers.find_by_token(token) for name, token in tokens.items()}
    assert {name: caller and caller.role for name, caller in found.items()} == {"web": Role.INFER, "ops.eu-1": Role.OPERATE}


def test_without_a_file_the_entry_is_printed_beside_the_token() -> None:
    made = run("token", "new", "web", "--role", "observe")
    token = made.stdout.strip()
    assert f'token = "sha256:{hashlib.sha256(token.encode()).hexdigest()}"' in made.stderr
    assert token not in made.stderr


def test_an_entry_goes_behind_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.write_text(EVERYONE.rstrip())  # without an end of the line
    assert run("token", "new", "web", "--role", "infer", "--auth-file", str(file)).exit_code == 0
    assert AuthFile(file, ServerSettings()).callers.limits.keys() == {"infer-er", "operate-er", "observe-er", "web"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("infer-er", "--role", "infer"), "in the file already"),
        (("a b", "--role", "infer"), "letters, digits"),
        (("anonymous", "--role", "infer"), "not 'anonymous'"),
        (('a"]\nx = 1', "--role", "infer"), "letters, digits"),
        (("web", "--role", "root"), "'root' is not one of 'infer', 'operate', 'observe'"),
        (("web",), "Missing option '--role'"),
    ],
)
def test_a_caller_that_cannot_be_added_leaves_the_file_as_it_is(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    file = tmp_path / "callers.toml"
    file.write_text(EVERYONE)
    refused = run("token", "new", *arguments, "--auth-file", str(file))
    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.replace("\u2502", " ").split())
    assert file.read_text() == EVERYONE


def test_a_file_that_is_not_toml_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.write_text("[callers")
    refused = run("token", "new", "web", "--role", "infer", "--auth-file", str(file))
    assert refused.exit_code == 2
    assert file.read_text() == "[callers"

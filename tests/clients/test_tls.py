"""TLS from the clients' side: who is let in, and what is said, in one line, where no connection comes about."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from tests.calls import PATIENCE_SECONDS
from tests.certificates import Authority, openssl
from tests.models import Opinion, write_members
from tests.scripted import Caller, ScriptedService, serving
from tests.servers import RunningServer, running
from twinfer import errors, tls_credentials
from twinfer.cli.app import app

Addresses = dict[str, str]
"""Of servers that differ in their certificate; `mutual` wants one of its clients, `plain` speaks no TLS."""

EXPIRED = "the server's certificate has expired; whoever runs the server has to renew it"
EARLY = "the server's certificate is not valid yet"
ELSEWHERE = "for another host name than the one that it was called by"
STRANGER = "not from an authority that this client trusts; give the file of its authority (--tls-ca"
PLAIN = "the server speaks plain text, and this client TLS"
CLOSED = "the server closed the connection at once"


@pytest.fixture(scope="module")
def addresses(authority: Authority) -> Iterator[Addresses]:
    def credentials(name: str, client_ca: bytes | None = None) -> grpc.ServerCredentials:
        certificate, key = (path.read_bytes() for path in authority.pair(name))
        return grpc.ssl_server_credentials([(key, certificate)], client_ca, client_ca is not None)

    with ExitStack() as stack:
        found = {name: serving(ScriptedService(), credentials=credentials(name))
                 for name in ("server", "expired", "early", "elsewhere")}  # fmt: skip
        found["mutual"] = serving(ScriptedService(), credentials=credentials("server", authority.ca.read_bytes()))
        found["plain"] = serving(ScriptedService())
        yield {name: stack.enter_context(server) for name, server in found.items()}


def credentials(authorities: tuple[Authority, Authority], ca: str, client: str = "") -> grpc.ChannelCredentials | None:
    ours, other = authorities
    pair = other.pair("client") if client == "stranger" else ours.pair(client) if client else (None, None)
    return None if not ca else tls_credentials({"ours": ours.ca, "other": other.ca}[ca], *pair)


@pytest.mark.parametrize(("server", "client"), [("server", ""), ("server", "client"), ("mutual", "client")])
def test_a_client_with_the_right_certificates_gets_its_answer(
    caller: Caller, addresses: Addresses, authorities: tuple[Authority, Authority], server: str, client: str
) -> None:
    found = caller.infer(addresses[server], client={"credentials": credentials(authorities, "ours", client)})
    assert found.label == "five"


@pytest.mark.parametrize(
    ("server", "ca", "said"),
    [
        ("server", "other", STRANGER),
        ("expired", "ours", EXPIRED),
        ("early", "ours", EARLY),
        ("elsewhere", "ours", ELSEWHERE),
        ("plain", "ours", PLAIN),
    ],
)
@pytest.mark.parametrize("method", ["infer", "infer_many", "wait_until_ready"])
def test_what_can_never_be_is_said_at_once(
    caller: Caller, addresses: Addresses, authorities: tuple[Authority, Authority], method: str, server: str, ca: str, said: str
) -> None:
    settings = {"credentials": credentials(authorities, ca)}
    with pytest.raises(errors.HandshakeFailed) as failed:  # noqa: PT012 - one call, of one of three
        if method == "infer":
            caller.infer(addresses[server], client=settings)
        elif method == "infer_many":
            caller.infer_many(addresses[server], [{"text": "fve"}], client=settings)
        else:
            caller.call("wait_until_ready", addresses[server], PATIENCE_SECONDS, client=settings)
    assert said in failed.value.text
    assert len(failed.value.text.splitlines()) == 1
    assert failed.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("server", "ca", "client"),
    [
        ("server", "", ""),
        ("mutual", "", ""),
        ("mutual", "ours", ""),
        ("mutual", "ours", "stranger"),
        ("mutual", "ours", "former client"),
    ],
)
def test_a_connection_that_the_server_closes_has_both_reasons_in_its_error(
    caller: Caller, addresses: Addresses, authorities: tuple[Authority, Authority], server: str, ca: str, client: str
) -> None:
    options = {"credentials": credentials(authorities, ca, client)}
    with pytest.raises(errors.Unavailable, match=CLOSED) as failed:
        caller.infer(addresses[server], client=options)
    assert "it speaks TLS and this client does not" in failed.value.text
    assert "a certificate from an authority that it trusts" in failed.value.text
    with pytest.raises(errors.DeadlinePassed, match=rf"not ready after 0\.2 s: .*{CLOSED}"):  # a proxy may do so before it is up
        caller.call("wait_until_ready", addresses[server], 0.2, client=options)


def test_retries_of_what_can_never_be_end(caller: Caller, addresses: Addresses, authorities: tuple[Authority, Authority]) -> None:
    with pytest.raises(errors.HandshakeFailed, match=EXPIRED):
        caller.infer(addresses["expired"], client={"credentials": credentials(authorities, "ours"), "attempts": 2})


def test_a_name_with_several_addresses_hides_nothing(
    caller: Caller, addresses: Addresses, authorities: tuple[Authority, Authority]
) -> None:
    address = addresses["server"].replace("127.0.0.1", "localhost")  # to gRPC that is ::1 as well, where no server listens
    for _ in range(4):
        with pytest.raises(errors.HandshakeFailed, match="not from an authority"):
            caller.infer(address, client={"credentials": credentials(authorities, "other"), "attempts": 3})


def test_another_name_can_be_expected_of_the_server(
    caller: Caller, addresses: Addresses, authorities: tuple[Authority, Authority]
) -> None:
    options = [("grpc.ssl_target_name_override", "example.org")]
    settings = {"credentials": credentials(authorities, "ours"), "options": options}
    assert caller.infer(addresses["elsewhere"], client=settings).label == "five"


# --- files --------------------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.pair("client")
    with pytest.raises(ValueError, match=r"client\.key: found no certificate"):
        tls_credentials(key)
    with pytest.raises(ValueError, match="found one; needed: both or none"):
        tls_credentials(authority.ca, cert)
    with pytest.raises(ValueError, match=r"client\.pem and .*server\.key: they are no certificate and its key"):
        tls_credentials(authority.ca, cert, authority.pair("server")[1])
    with pytest.raises(FileNotFoundError):
        tls_credentials(tmp_path / "absent.pem")
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", tmp_path / "encrypted.key")
    with pytest.raises(ValueError, match="found an encrypted key"):
        tls_credentials(authority.ca, cert, tmp_path / "encrypted.key")


# --- the command line ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RunningServer]:
    folder = write_members(tmp_path_factory.mktemp("pair"), {"left": Opinion(), "right": Opinion()})
    settings = authority.serve(asks_clients=True)
    with running(folder, trust_code=True, admin_listen="127.0.0.1:0", **settings) as server:
        yield server


def flags(authority: Authority, **more: str) -> list[str]:
    cert, key = authority.pair("client")
    found = {"ca": str(authority.ca), "cert": str(cert), "key": str(key)} | more
    return [word for name, value in found.items() if value for word in (f"--tls-{name}", value)]


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1", **env})


COMMANDS = {
    "describe": ["describe"],
    "infer": ["infer", "--input", "left=@{array}", "--input", "right=@{array}"],
    "bench": ["bench", "--concurrency", "2", "--seconds", "0.1", "--warm-up", "0"],
    "fusion show": ["fusion", "show"],
    "fusion update": ["fusion", "update", "--weight", "left=1", "--weight", "right=1"],
    "fusion rollback": ["fusion", "rollback", "--version", "1"],
    "member off": ["member", "off", "left"],
    "member on": ["member", "on", "left"],
    "timeline": ["timeline", "--seconds", "0.01", "-o", "{trace}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_connects_does_so_by_tls(
    secured: RunningServer, authority: Authority, tmp_path: Path, name: str
) -> None:
    np = pytest.importorskip("numpy")
    np.save(tmp_path / "one.npy", np.ones(1, np.float32))
    words = [word.format(array=tmp_path / "one.npy", trace=tmp_path / "trace.json") for word in COMMANDS[name]]
    is_operators = words[0] in ("member", "timeline") or name in ("fusion update", "fusion rollback")
    address = secured.admin_address if is_operators else secured.address
    place = [address] if name == "bench" else ["--server", address]
    done = run(*words, *place, *flags(authority))
    assert done.exit_code == 0, done.output
    cert, key = map(str, authority.pair("client"))
    variables = {"TWINFER_TLS_CA": str(authority.ca), "TWINFER_TLS_CLIENT_CERT": cert, "TWINFER_TLS_CLIENT_KEY": key}
    assert run(*words, *place, **variables).exit_code == 0
    refused = run(*words, *place)
    assert (refused.exit_code, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)
    assert refused.stderr.startswith(f"UNAVAILABLE: {CLOSED}")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"ca": "absent.pem"}, 2, "absent.pem"),
        ({"key": ""}, 2, "needed: both or none"),
        ({"server-name": "example.org"}, 1, ELSEWHERE),
        ({"server-name": "localhost"}, 0, ""),
    ],
)
def test_wrong_files_and_names_are_said(
    secured: RunningServer, authority: Authority, more: dict[str, str], code: int, said: str
) -> None:
    done = run("describe", "--server", secured.address, *flags(authority, **more))
    assert done.exit_code == code
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_public_authorities_are_those_that_grpc_comes_with(secured: RunningServer) -> None:
    done = run("describe", "--server", secured.address, "--tls")
    assert (done.exit_code, STRANGER in done.stderr) == (1, True)


def test_a_server_that_is_not_there_is_not_taken_for_one_that_refuses(refused_address: str, authority: Authority) -> None:
    done = run("describe", "--server", refused_address, *flags(authority), "--timeout", "1s")
    assert done.exit_code == 1
    assert "refused" in done.stderr.lower()
    assert CLOSED not in done.stderr

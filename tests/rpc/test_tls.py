"""TLS as clients that are not ours see it, and certificates that are replaced, rightly and wrongly, while the server runs."""

import asyncio
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import GET_ENSEMBLE, PATIENCE_SECONDS, Failure, call, connect
from tests.certificates import Authority, openssl, replace
from tests.gated import make_gated, write_gated
from tests.processes import run
from tests.servers import RunningServer, running
from twinfer import AsyncClient, Client
from twinfer.errors import TwinferError
from twinfer_server.rpc.tls import Certificates, warn_of_plain_listeners
from twinfer_server.settings import InvalidSettings, is_local, read_settings

CHECK = "/grpc.health.v1.Health/Check"
LISTENERS: dict[str, Any] = dict.fromkeys(("listen", "admin_listen", "metrics_listen", "health_listen"), "127.0.0.1:0")
S_CLIENT = ["openssl", "s_client", "-alpn", "h2", "-verify_return_error", "-ign_eof"]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RunningServer]:
    """A server that wants certificates of its clients on every listener but that of health."""
    folder = write_gated(tmp_path_factory.mktemp("gated"))
    with running(folder, trust_code=True, **LISTENERS, **authority.serve(asks_clients=True)) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> dict[str, Path]:
    """Files of a server's own, for a test to replace."""
    found = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    for source, path in zip(authority.pair("server"), found.values(), strict=True):
        shutil.copy(source, path)
    return found


def shown_by(address: str) -> str:
    """Return the certificate that a new connection is shown, in PEM."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=PATIENCE_SECONDS)


def certificate(authority: Authority, name: str) -> str:
    return authority.pair(name)[0].read_text()


# --- other people's clients -------------------------------------------------------------------------------------------------


def client_words(authority: Authority, other: Authority, name: str) -> list[str]:
    """Return the options of openssl and curl for one of the clients' certificates, or for none."""
    if not name:
        return []
    cert, key = (other if name == "stranger" else authority).pair("client" if name == "stranger" else name)
    return ["-cert", str(cert), "-key", str(key)]


CLIENTS = pytest.mark.parametrize("name", ["client", "", "stranger", "former client"], ids=lambda name: name or "none")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@CLIENTS
def test_openssl_is_let_in_with_the_right_certificate_only(
    secured: RunningServer, authorities: tuple[Authority, Authority], name: str, version: str
) -> None:
    words = [*S_CLIENT, "-CAfile", str(authorities[0].ca), "-connect", secured.address, version]
    # It sends HTTP/2's preface, empty SETTINGS, and a frame that is too large; a server that has let it in sends SETTINGS of
    # its own, and ends the connection.
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\xff" * 32
    done = subprocess.run(
        [*words, *client_words(*authorities, name)], input=preface, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    said = (done.stdout + done.stderr).decode("latin-1")
    assert (b"\4\0\0\0\0\0" in done.stdout) == (name == "client"), said
    if name == "client":
        assert "ALPN protocol: h2" in said
        assert f"TLSv1.{version[-1]}" in said
    else:
        assert "unexpected eof" in said, said  # gRPC closes the connection, and sends no alert


def test_tls_1_1_is_refused_by_the_server(secured: RunningServer) -> None:
    # The lowest security level, or OpenSSL itself would not offer it.
    words = ["openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", secured.address]
    done = subprocess.run(words, input=b"", capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    assert b"SSL handshake has read 0 bytes" in done.stdout
    assert b"unexpected eof" in done.stderr


@CLIENTS
def test_curl_is_let_in_with_the_right_certificate_only(
    secured: RunningServer, authorities: tuple[Authority, Authority], name: str
) -> None:
    done = run_curl(secured, client_words(*authorities, name), authorities[0])
    if name == "client":
        assert (done.returncode, done.stdout) == (0, b"\0\0\0\0\2\x08\1"), done.stderr
    else:
        assert (bool(done.returncode), done.stdout) == (True, b"")


def run_curl(server: RunningServer, words: list[str], authority: Authority) -> "subprocess.CompletedProcess[bytes]":
    """Ask for health by HTTP/2; `words` are openssl's, which curl writes with two hyphens."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no `curl` on the PATH")
    words = [f"-{word}" if word in ("-cert", "-key") else word for word in words]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command = [curl, "-sS", "--http2", *headers, "--data-binary", "@-", "--cacert", str(authority.ca), *words]
    target = f"https://{server.address}{CHECK}"
    return subprocess.run([*command, target], input=bytes(5), capture_output=True, timeout=PATIENCE_SECONDS, check=False)


def test_the_operators_listener_and_the_metrics_are_behind_the_same_door(secured: RunningServer, authority: Authority) -> None:
    with grpc.secure_channel(secured.admin_address, authority.connect("client")) as channel:
        found = call(channel, "/twinfer.v1.EnsembleAdminService/SetMember", b"")
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT  # it has been read
    for credentials in (authority.connect(), None):
        address, options = secured.admin_address, [("grpc.use_local_subchannel_pool", 1)]
        open_channel = grpc.insecure_channel(address, options) if credentials is None else grpc.secure_channel(
            address, credentials, options)  # fmt: skip
        with open_channel as channel:
            found = call(channel, CHECK, b"")
            assert isinstance(found, Failure)
            assert found.code is grpc.StatusCode.UNAVAILABLE
    assert b"twinfer_requests_total" in read_metrics(secured, authority, "client")
    with pytest.raises(OSError, match=r"certificate required|bad certificate|EOF|reset"):
        read_metrics(secured, authority, None)


def read_metrics(server: RunningServer, authority: Authority, client: str | None) -> bytes:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if client:
        context.load_cert_chain(*authority.pair(client))
    with urllib.request.urlopen(f"https://{server.metrics_address}/metrics", context=context, timeout=PATIENCE_SECONDS) as reply:
        found: bytes = reply.read()
        return found


def test_metrics_are_read_while_another_client_says_nothing_and_a_third_speaks_plain_text(
    secured: RunningServer, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    host, _, port = secured.metrics_address.rpartition(":")
    with socket.create_connection((host, int(port))), pytest.raises(OSError, match=r"reset|closed|HTTP"):
        urllib.request.urlopen(f"http://{secured.metrics_address}/metrics", timeout=PATIENCE_SECONDS)
    with socket.create_connection((host, int(port))):
        assert read_metrics(secured, authority, "client")
    assert "Traceback" not in capfd.readouterr().err


def test_probes_ask_for_health_in_the_clear_and_for_nothing_else(secured: RunningServer) -> None:
    with connect(secured.health_address) as channel:
        for service in ("", "twinfer.v1.EnsembleService", "twinfer.v1.EnsembleService/picture"):
            request = health_pb2.HealthCheckRequest(service=service)
            found = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_SECONDS)
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        for method in (GET_ENSEMBLE, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/inference.X/ServerLive"):
            refused = call(channel, method, b"")
            assert isinstance(refused, Failure)
            assert refused.code is grpc.StatusCode.UNIMPLEMENTED


# --- certificates that are replaced -----------------------------------------------------------------------------------------


def test_certificates_are_replaced_ten_times_under_load_and_no_call_fails(
    folder: Path, files: dict[str, Path], authority: Authority
) -> None:
    settings: dict[str, Any] = {**files, "tls_client_ca": authority.ca}
    apart: dict[str, Any] = {"attempts": 1, "options": [("grpc.use_local_subchannel_pool", 1)]}
    failures: list[TwinferError] = []
    shown: set[str] = set()
    ended = threading.Event()
    calls = threading.Semaphore(0)

    def ask(address: str) -> None:
        while not ended.is_set():
            with Client(address, credentials=authority.connect("client"), **apart) as client:
                for _ in range(3):
                    try:
                        client.infer(make_gated())
                    except TwinferError as error:
                        failures.append(error)
                    calls.release()

    async def ask_on_a_loop(address: str) -> None:
        while not ended.is_set():
            async with AsyncClient(address, credentials=authority.connect("client"), **apart) as client:
                found = await asyncio.gather(*(client.infer(make_gated()) for _ in range(3)), return_exceptions=True)
                failures.extend(one for one in found if isinstance(one, TwinferError))
                calls.release(len(found))

    with running(folder, trust_code=True, **settings) as server, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, server.address) for _ in range(3)]
        asking.append(threads.submit(lambda: asyncio.run(ask_on_a_loop(server.address))))
        try:
            for number in range(10):
                replace(files, authority, ("renewed", "server")[number % 2])
                shown.add(shown_by(server.address))
                assert run_curl(server, client_words(authority, authority, "client"), authority).returncode == 0
                for _ in range(24):
                    assert calls.acquire(timeout=PATIENCE_SECONDS)
        finally:
            ended.set()
        for one in asking:
            one.result()
    assert failures == []
    assert shown == {certificate(authority, name) for name in ("server", "renewed")}


def test_a_new_authority_of_the_clients_is_used_from_the_next_connection_on(
    folder: Path, tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    ours, other = authorities
    trusted = tmp_path / "clients.pem"
    shutil.copy(ours.ca, trusted)
    stranger = grpc.ssl_channel_credentials(ours.ca.read_bytes(), *(path.read_bytes() for path in reversed(other.pair("client"))))
    options: list[Any] = [("grpc.use_local_subchannel_pool", 1)]
    settings = ours.serve() | {"tls_client_ca": trusted, "metrics_listen": "127.0.0.1:0"}
    with running(folder, trust_code=True, **settings) as server, grpc.secure_channel(server.address, ours.connect("client")) as old:
        assert call(old, CHECK, b"") == b"\x08\1"
        with grpc.secure_channel(server.address, stranger, options) as channel:
            assert isinstance(call(channel, CHECK, b""), Failure)
        shutil.copy(other.ca, trusted)
        with grpc.secure_channel(server.address, stranger, options) as channel:
            assert call(channel, CHECK, b"") == b"\x08\1"
        with grpc.secure_channel(server.address, ours.connect("client"), options) as channel:
            assert isinstance(call(channel, CHECK, b""), Failure)
        assert call(old, CHECK, b"") == b"\x08\1"  # a connection that is there is left alone
        with pytest.raises(OSError, match=r"alert|EOF|reset"):
            read_metrics(server, ours, "client")


def write_half(files: dict[str, Path], authority: Authority) -> None:
    files["tls_cert"].write_text(certificate(authority, "renewed")[:300])


def write_key_of_another(files: dict[str, Path], authority: Authority) -> None:
    shutil.copy(authority.pair("client")[1], files["tls_key"])


def write_another_type_of_key(files: dict[str, Path], authority: Authority) -> None:
    openssl("genrsa", "-out", files["tls_key"], "2048")


def write_nonsense(files: dict[str, Path], authority: Authority) -> None:
    files["tls_key"].write_bytes(bytes(range(256)))


def encrypt(files: dict[str, Path], authority: Authority) -> None:
    openssl("ec", "-in", authority.pair("server")[1], "-aes256", "-passout", "pass:secret", "-out", files["tls_key"])


def write_ed25519(files: dict[str, Path], authority: Authority) -> None:
    openssl("genpkey", "-algorithm", "ed25519", "-out", files["tls_key"])


def remove(files: dict[str, Path], authority: Authority) -> None:
    files["tls_cert"].unlink()


def put_a_folder(files: dict[str, Path], authority: Authority) -> None:
    files["tls_key"].unlink()
    files["tls_key"].mkdir()


def put_a_clients_certificate(files: dict[str, Path], authority: Authority) -> None:
    replace(files, authority, "client")


BREAKS = {
    write_half: "tls_cert: found no certificate, or a damaged one",
    write_key_of_another: "tls_key: found the key of another certificate",
    write_another_type_of_key: "tls_key: found the key of another certificate",
    write_nonsense: "tls_key: found no key",
    encrypt: "tls_key: found an encrypted key",
    write_ed25519: "tls_key: found an Ed25519 key",
    remove: "tls_cert: .*cert.pem: No such file",
    put_a_folder: "tls_key: .*key.pem: Is a directory",
    put_a_clients_certificate: "tls_cert: clients would not accept .* unsuitable certificate purpose",
}
by_name = pytest.mark.parametrize("break_files", BREAKS, ids=lambda act: act.__name__)


@by_name
def test_files_that_cannot_be_used_leave_the_old_ones_in_use_and_are_reported_once(
    files: dict[str, Path], authority: Authority, caplog: pytest.LogCaptureFixture, break_files: Any
) -> None:
    found = Certificates(files)
    before = found.latest()
    break_files(files, authority)
    with caplog.at_level(logging.INFO):
        assert [found.latest() for _ in range(3)] == [before] * 3
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert re.search(f"the ones before stay in use: {BREAKS[break_files]}", record.getMessage())
        for path in files.values():
            if path.is_dir():
                path.rmdir()
        replace(files, authority, "renewed")
        assert found.latest().certificate.decode() == certificate(authority, "renewed")
        assert "renewed from" in caplog.records[-1].getMessage()


@by_name
def test_a_server_does_not_start_with_files_that_cannot_be_used(
    files: dict[str, Path], authority: Authority, break_files: Any
) -> None:
    break_files(files, authority)
    with pytest.raises(InvalidSettings, match=BREAKS[break_files]):
        Certificates.read(read_settings(**files))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tls_cert"], "tls_key: found nothing; needed: a file in PEM, as tls_cert is set"),
        (["tls_key"], "tls_cert: found nothing; needed: a file in PEM, as tls_key is set"),
        (["tls_client_ca"], "tls_cert: found nothing; needed: a file in PEM, as tls_client_ca is set"),
    ],
)
def test_a_setting_that_another_one_needs_is_named(authority: Authority, names: list[str], said: str) -> None:
    settings = authority.serve(asks_clients=True)
    with pytest.raises(InvalidSettings, match=said):
        Certificates.read(read_settings(**{name: settings[name] for name in names}))


def test_a_file_of_authorities_without_any_is_refused(authority: Authority) -> None:
    settings = authority.serve() | {"tls_client_ca": authority.pair("client")[1]}
    with pytest.raises(InvalidSettings, match="tls_client_ca: found no certificate"):
        Certificates.read(read_settings(**settings))


def test_without_files_there_is_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINFER_TLS_CERT", "")  # as compose files write what is not set
    monkeypatch.setenv("TWINFER_TLS_CA", "/for/the/clients")
    assert Certificates.read(read_settings()) is None


# --- warnings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "said"), [("expired", "has expired (2020-02-01"), ("early", "is not valid yet"), ("server", "")])
def test_dates_that_clients_refuse_are_warned_of_once(
    authority: Authority, caplog: pytest.LogCaptureFixture, name: str, said: str
) -> None:
    found = Certificates.read(read_settings(**authority.serve(name)))
    assert found is not None
    for _ in range(2):
        found.latest()
    assert len(caplog.records) == bool(said)
    assert said in caplog.text


def test_listeners_that_other_machines_can_reach_in_the_clear_are_warned_of(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    reachable = {"listen": "0.0.0.0:1", "admin_listen": "[::]:2", "metrics_listen": "example.org:3", "health_listen": "0.0.0.0:4"}
    warn_of_plain_listeners(read_settings(**reachable, **authority.serve()))
    assert caplog.records == []
    warn_of_plain_listeners(read_settings(**reachable))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["listen", "admin_listen", "metrics_listen"]
    assert all("set tls_cert and tls_key, or listen on 127.0.0.1" in record.getMessage() for record in caplog.records)


def test_a_server_says_at_the_start_what_it_leaves_open_and_what_it_cannot_use(
    folder: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with running(folder, trust_code=True, listen="0.0.0.0:0"):
        assert "listen: other machines can reach 0.0.0.0:0, and it speaks plain text" in caplog.text
    cert, key = authority.pair("server")[0], authority.pair("client")[1]
    done = run("serve", str(folder), "--listen", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("error: tls_key: found the key of another certificate; needed: that of tls_cert")


def test_addresses_of_this_machine_are_told_from_others() -> None:
    assert [is_local(address) for address in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/x")] == [True] * 5
    assert [is_local(address) for address in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example.org:1")] == [False] * 4

"""The proxy that the environment names: never asked for this machine's own servers, named where a call through it fails."""

import itertools
import os
import socket
import threading

import pytest

from tests.calls import PATIENCE_SECONDS
from tests.processes import run
from tests.scripted import Caller, ScriptedService
from twinfer import Client, TwinferError, errors
from twinfer.proxy import VARIABLES, find_proxy, is_local

_ports = itertools.count(50051)


class Proxy:
    """A proxy that lets nobody through, and remembers who asked for what."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                self.asked.append(connection.recv(4096).partition(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def elsewhere() -> str:
    """An address of another machine, of those kept for documentation; each once, for gRPC shares connections that failed."""
    return f"192.0.2.1:{next(_ports)}"


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    proxy.asked.clear()


@pytest.fixture(params=VARIABLES)
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> str:
    name: str = request.param
    monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{proxy.port}")
    return name


def test_this_machines_own_server_is_asked_directly(
    caller: Caller, service: ScriptedService, variable: str, proxy: Proxy
) -> None:  # fmt: skip
    port = service.address.rpartition(":")[2]
    for target in (service.address, f"localhost:{port}", f"dns:///localhost:{port}", f"ipv4:127.0.0.1:{port}"):
        caller.infer(target)
    assert proxy.asked == []


def test_an_error_of_a_call_through_a_proxy_names_the_variable_and_no_password(
    caller: Caller, variable: str, proxy: Proxy, elsewhere: str
) -> None:  # fmt: skip
    with pytest.raises(errors.Unavailable) as raised:
        caller.infer(elsewhere)
    assert proxy.asked[0] == f"CONNECT {elsewhere} HTTP/1.1".encode()
    assert f"through the HTTP proxy of the variable {variable} (127.0.0.1:{proxy.port})" in raised.value.text
    assert "no_proxy" in raised.value.text
    assert "secret" not in str(raised.value)


def test_waiting_for_a_server_names_the_proxy(variable: str, elsewhere: str) -> None:
    with Client(elsewhere) as client, pytest.raises(TwinferError, match=f"the HTTP proxy of the variable {variable}"):
        client.wait_until_ready(0.2)


@pytest.mark.parametrize("command", [("infer", "--text", "a", "--server"), ("member", "off", "vision", "--server")])
def test_commands_name_the_proxy(proxy: Proxy, elsewhere: str, command: tuple[str, ...]) -> None:
    found = run(*command, elsewhere, env={"https_proxy": f"http://127.0.0.1:{proxy.port}"})
    assert found.returncode == 1
    assert "variable https_proxy" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    "target",
    [
        "unix:/tmp/socket", "unix:relative", "unix:///tmp/socket", "unix-abstract:name", "localhost:1", "LOCALHOST:1",
        "localhost.:1", "localhost", "a.localhost:1", "127.0.0.1:1", "127.255.0.9:1", "127.1:1", "127.0.0.1", "[::1]:1", "[::1]",
        "::1",
        "[::ffff:127.0.0.1]:1", "0.0.0.0:1", "[::]:1", "dns:localhost:1", "dns:///127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1", "ipv6:%5B::1%5D:1",
    ],
)  # fmt: skip
def test_targets_on_this_machine(target: str, variable: str) -> None:
    assert is_local(target)
    assert find_proxy(target) == ""


@pytest.mark.parametrize(
    "target",
    [
        "example.org:443", "128.0.0.1:1", "10.127.0.0:1", "localhost.example.org:1", "mylocalhost:1", "127.example.org:1",
        "[2001:db8::1]:1", "ipv4:127.0.0.1:1,192.0.2.1:1", "dns:///example.org:1", "dns://127.0.0.1/example.org:1", "", "%",
        "a:b:c",
    ],
)  # fmt: skip
def test_targets_elsewhere(target: str) -> None:
    assert not is_local(target)


ENVIRONMENTS = [
    ({"http_proxy": "http://PROXY"}, "http_proxy"),
    ({"grpc_proxy": "http://PROXY", "http_proxy": "http://other:1"}, "grpc_proxy"),
    ({"https_proxy": "http://PROXY", "http_proxy": "http://other:1"}, "https_proxy"),
    ({"grpc_proxy": "", "http_proxy": "http://PROXY"}, ""),
    ({"http_proxy": "https://PROXY"}, ""),
    ({"http_proxy": "PROXY"}, ""),
    ({"HTTP_PROXY": "http://PROXY"}, ""),
    ({"all_proxy": "http://PROXY"}, ""),
    ({"http_proxy": "http://PROXY", "no_proxy": "10.0.0.0/8"}, "http_proxy"),
    ({"http_proxy": "http://PROXY", "no_proxy": "a, 192.0.2.0/24"}, ""),
    ({"http_proxy": "http://PROXY", "no_proxy": "192.0.2.1"}, ""),
    ({"http_proxy": "http://PROXY", "no_proxy": "*"}, "http_proxy"),
    ({"http_proxy": "http://PROXY", "no_proxy": ""}, "http_proxy"),
    ({"http_proxy": "http://PROXY", "no_grpc_proxy": "a", "no_proxy": "192.0.2.1"}, "http_proxy"),
]


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS, ids=[str(environment) for environment, _ in ENVIRONMENTS])
def test_what_is_said_of_a_proxy_is_what_gRPC_does(
    monkeypatch: pytest.MonkeyPatch, proxy: Proxy, elsewhere: str, environment: dict[str, str], expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("PROXY", f"127.0.0.1:{proxy.port}"))
    assert find_proxy(elsewhere) == (expected and f"{expected} (127.0.0.1:{proxy.port})")
    with Client(elsewhere, attempts=1) as client, pytest.raises(TwinferError):
        client.infer({"text": "a"}, timeout=PATIENCE_SECONDS if expected else 0.05)
    assert bool(proxy.asked) == bool(expected)

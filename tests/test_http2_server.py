"""The server listens on every form of address, and stops with grace: calls in hand end well, new ones go elsewhere."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import connect as open_channel
from tests.peers import DATA, GOAWAY, PREFACE, SETTINGS, BarePeer, connect, message, raw
from tests.wire import ECHO, LIMITS, LOOPS, MIRROR, WAIT, RunningWire, wired
from twinfer_server.http2 import PortTaken, Server


def has_ipv6() -> bool:
    """Whether this machine can be reached over IPv6."""
    with socket.socket(socket.AF_INET6) as found:
        try:
            found.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture(params=LOOPS)
def wire(request: pytest.FixtureRequest) -> Iterator[RunningWire]:
    with wired(request.param) as wire:
        yield wire


def echo(address: str) -> Any:
    """Have a client of `grpc` make a call, on a connection of its own: the last server's may still seem to be open."""
    channel: Any
    with open_channel(address) as channel:
        return channel.unary_unary(ECHO)(b"x")


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("address", "reached_at"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        pytest.param("[::1]:0", ["[::1]"], marks=needs_ipv6),
        pytest.param("[::]:0", ["[::1]", "127.0.0.1"], marks=needs_ipv6),
        ("0.0.0.0:0", ["127.0.0.1"]),
        ("localhost:0", ["localhost", "127.0.0.1"]),
    ],
)
def test_the_server_is_reached_on_the_port_that_it_found(loop: str, address: str, reached_at: list[str]) -> None:
    with wired(loop, address) as wire:
        host, _, port = wire.address.rpartition(":")
        assert host == address.removesuffix(":0")
        assert int(port) > 0
        assert [echo(f"{each}:{port}") for each in reached_at] == [b"x"] * len(reached_at)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("slashes", ["", "//"])
def test_a_socket_in_a_folder_is_reached_also_where_one_was_left(loop: str, slashes: str, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    for _ in range(2):
        with wired(loop, f"unix:{slashes}{path}") as wire:
            assert wire.address == f"unix:{slashes}{path}"
            assert echo(wire.address) == b"x"


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(PortTaken, match="precious"), wired(address=f"unix:{path}"):
        pass
    assert path.read_text() == "mine"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_socket_on_which_somebody_listens_is_left_to_them(loop: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'server.sock'}"
    with wired(loop, address) as first:
        with pytest.raises(PortTaken, match=f"{address}: another server has it"), wired(loop, address):
            pass
        assert echo(first.address) == b"x"


@pytest.mark.parametrize("address", ["203.0.113.1:0", "unix:/no/such/folder/socket"])
def test_an_address_that_is_not_this_machines_is_refused(address: str) -> None:
    with pytest.raises(PortTaken, match=address), wired(address=address):
        pass


@pytest.mark.parametrize("loop", LOOPS)
def test_a_port_that_is_taken_is_refused_and_that_of_a_server_which_has_ended_is_free(loop: str) -> None:
    with wired(loop) as first:
        assert echo(first.address) == b"x"
        with pytest.raises(PortTaken, match=first.address), wired(loop, first.address):
            pass
    with wired(loop, first.address) as second:
        assert echo(second.address) == b"x"


@pytest.mark.parametrize("loop", LOOPS)
def test_servers_that_share_a_port_each_get_connections(loop: str) -> None:
    async def share() -> tuple[int, int]:
        first, second = Server(LIMITS), Server(LIMITS)
        address = await first.start("127.0.0.1:0", is_shared=True)
        assert await second.start(address, is_shared=True) == address
        host, port = address.split(":")
        clients = [await asyncio.open_connection(host, int(port)) for _ in range(64)]
        for reader, _ in clients:
            await reader.readexactly(9)
        found = len(first.connections), len(second.connections)
        for _, writer in clients:
            writer.close()
        await asyncio.gather(first.stop(0), second.stop(0))
        return found

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        found = runner.run(share())
    assert sum(found) == 64
    assert min(found) > 0


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_calls_in_hand_end_well_within_the_grace(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer, BarePeer(wire.address) as idle:
        peer.send(peer.call(1, WAIT, b"in hand"), peer.head(3, MIRROR), raw(DATA, 0, 3, message(b"one")))
        assert wire.seen.get() == "wait begins"
        idle.wait(lambda: idle.frames)
        stopped = wire.stop(1000)
        peer.wait(lambda: peer.of_kind(GOAWAY))
        assert (peer.frames[-1].error_code, peer.frames[-1].last_stream_id) == (0, 3)
        assert idle.rest()[-1].type == GOAWAY
        peer.send(peer.call(5, ECHO, b"too late"), raw(DATA, 1, 3, message(b"two")))
        assert peer.answer(3).messages == [b"one", b"two"]
        wire.open_gate()
        assert peer.answer(1).messages == [b"in hand"]
        peer.rest()
        assert 5 not in peer.answers
        stopped.result()
    with pytest.raises(ConnectionRefusedError):
        BarePeer(wire.address)


def test_calls_that_outlast_the_grace_are_unavailable_and_cancelled(wire: RunningWire) -> None:
    with BarePeer(wire.address) as peer:
        peer.send(peer.call(1, WAIT, b""), peer.head(3, MIRROR))
        assert wire.seen.get() == "wait begins"
        wire.stop(0.01).result()
        assert wire.seen.get() == "wait is cancelled"
        assert [peer.answer(stream).status for stream in (1, 3)] == [(14, "the server is shutting down")] * 2
        peer.rest()


def test_a_client_of_grpc_takes_its_next_call_to_another_server(wire: RunningWire) -> None:
    channel: Any
    with grpc.insecure_channel(wire.address) as channel:
        waiting = channel.unary_unary(WAIT).future(b"in hand")
        assert wire.seen.get() == "wait begins"
        stopped = wire.stop(1000)
        assert [wire.count_connections() for _ in range(2)] == [1, 1]  # so that it has begun to stop
        with wired(address=wire.address) as other:
            assert channel.unary_unary(ECHO)(b"next", wait_for_ready=True) == b"next"
            assert other.count_connections() == 1
            wire.open_gate()
            assert waiting.result() == b"in hand"
        stopped.result()


@pytest.mark.parametrize("turns", range(4))
def test_a_client_that_comes_while_the_server_stops_is_sent_away(turns: int) -> None:
    async def stop_meanwhile() -> bytes:
        server = Server(LIMITS)
        address = await server.start("127.0.0.1:0")
        with connect(address) as client:
            client.sendall(PREFACE + raw(SETTINGS, 0, 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.stop(1000)
            client.setblocking(False)
            received = b""
            with suppress(ConnectionResetError):
                while more := await asyncio.get_running_loop().sock_recv(client, 2**16):
                    received += more
            return received

    # asyncio's own loop may lose such a client before any of this is asked.
    with asyncio.Runner(loop_factory=LOOPS["uvloop"]) as runner:
        received = runner.run(stop_meanwhile())
    assert not received or b"the server is shutting down" in received

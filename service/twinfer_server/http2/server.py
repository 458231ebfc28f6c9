"""The server: listens, and hands calls to the handlers that services have registered."""

import asyncio
import errno
import logging
import math
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from .call import Handler
from .connection import Connection
from .frames import ConnectionFault
from .heads import Metadata, Status

logger = logging.getLogger(__name__)

BACKLOG = 1024
UNIX = "unix:"
CLOSING_SECONDS = 0.5
"""How long clients have to take the last bytes when the server stops."""

FAULT_SECONDS = 1.0
"""How often, at the most, it is logged that a client was parted with: who does it on purpose does it often."""
LOOK_SECONDS = 0.1
"""How often calls are looked at whose time may be up. Clients mind their deadlines themselves; here none is to be forgotten."""
GONE_SECONDS = 60
"""How long a client's machine may say nothing at all before its connection ends."""
_TCP_OPTIONS = {"TCP_KEEPIDLE": GONE_SECONDS, "TCP_KEEPINTVL": 10, "TCP_USER_TIMEOUT": 1000 * GONE_SECONDS}
"""When TCP asks an idle client whether it is there, how soon again, and how long it may take nothing of what it is sent; tcp(7)."""


class PortTaken(Exception):
    """The address cannot be listened on."""


def _refuse(text: str) -> Status:
    return Status(grpc.StatusCode.RESOURCE_EXHAUSTED, text)


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers may ask for; messages in both directions have at most `max_message_bytes`."""

    max_message_bytes: int
    max_concurrent_calls: int
    max_streams_per_connection: int
    message_seconds: float = 60.0
    """How long the only message of a call may take to come, more if it is large, whatever the deadline; and a reply to be taken."""
    refuse: Callable[[str], Status] = _refuse
    """Says how a call ends that is one too many, given what was found and what is allowed."""
    free: frozenset[str] = frozenset()
    """The paths of methods that take no place among the calls at once, such as those that tell whether the server is well."""


class _Details(NamedTuple):
    """What a generic handler is asked with."""

    method: str
    invocation_metadata: Metadata


class Server:
    """Serves registered handlers on one address. They are `grpc`'s, and coroutines or asynchronous generators. Event loop only."""

    def __init__(self, limits: Limits) -> None:
        """Begin without handlers and without an address."""
        self.limits = limits
        self.connections: set[Connection] = set()
        self.is_stopping = False
        """Whether those who come now are sent away."""
        self._generic: list[grpc.GenericRpcHandler] = []
        self._found: dict[str, Handler] = {}
        self._calls = self._places = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._listeners: list[asyncio.Server] = []
        self._looking: asyncio.TimerHandle | None = None
        self._fault_at = -math.inf

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Register handlers, as `grpc.aio.Server` does."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: "Mapping[str, Handler]") -> None:
        """Do nothing: generated code hands over the same handlers as generic ones, too."""

    async def start(self, address: str, *, is_shared: bool = False) -> str:
        """Listen on HOST:PORT or unix:PATH; gives the address with the port that was found. Raises PortTaken.

        If it `is_shared`, other processes may listen on the same port, and each gets some of the connections.
        """
        loop = asyncio.get_running_loop()
        try:
            sockets = _bind(address, is_shared)
        except OSError as error:
            why = "another server has it" if error.errno == errno.EADDRINUSE else error.strerror
            raise PortTaken(f"cannot listen on {address}: {why}") from error
        for each in sockets:
            make = loop.create_unix_server if each.family == socket.AF_UNIX else loop.create_server
            self._listeners.append(await make(lambda: Connection(self), sock=each, backlog=BACKLOG))
        if address.startswith(UNIX):
            return address
        return f"{address.rpartition(':')[0]}:{sockets[0].getsockname()[1]}"

    async def leave(self, grace_seconds: float) -> bool:
        """Listen no more, send clients elsewhere with new calls, and say whether those that there are end within the grace."""
        if not self.is_stopping:
            self.is_stopping = True
            for listener in self._listeners:
                listener.close()
            for connection in [*self.connections]:
                connection.leave()
        try:
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        except TimeoutError:
            return False
        return True

    async def stop(self, grace_seconds: float) -> None:
        """Listen no more, and end what is still open after the grace."""
        if not await self.leave(grace_seconds):
            for connection in [*self.connections]:
                connection.calls.end(Status(grpc.StatusCode.UNAVAILABLE, "the server is shutting down"))
        closing = [connection.closed for connection in self.connections]
        if closing:
            await asyncio.wait(closing, timeout=CLOSING_SECONDS)
        for connection in [*self.connections]:
            connection.abort()

    # --- what connections use -----------------------------------------------------------------------------------------

    def find(self, path: str) -> "Handler | Status":
        """Find the handler of a method, or say why a call of it is not taken now."""
        allowed = self.limits.max_concurrent_calls
        if self._places >= allowed and path not in self.limits.free:
            return self.limits.refuse(f"calls: found {self._places + 1} at once; allowed: {allowed} (max_concurrent_calls)")
        handler = self._found.get(path)
        if handler is None:
            details: Any = _Details(path, ())
            handler = next((found for each in self._generic if (found := each.service(details)) is not None), None)
            if handler is None:
                return Status(grpc.StatusCode.UNIMPLEMENTED, f"method: found {path!r:.200}, which is not served here")
            self._found[path] = handler
        return handler

    def note_fault(self, client: object, fault: ConnectionFault) -> None:
        """Log why a client is parted with."""
        now = time.monotonic()
        if now - self._fault_at >= FAULT_SECONDS:
            self._fault_at = now
            logger.warning("parting with the client at %s: %s", client or "a socket", fault)

    def count(self, path: str, change: int) -> None:
        """Count the calls that there are, and the places that they take."""
        self._calls += change
        if path not in self.limits.free:
            self._places += change
        if self._calls:
            self._idle.clear()
            self._look_later()
        else:
            self._idle.set()

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """End the calls whose time is up, again and again while there are calls."""
        self._looking, now = None, time.monotonic()
        for connection in [*self.connections]:
            connection.calls.look(now)
        if self._calls:
            self._look_later()


def _bind(address: str, is_shared: bool) -> list[socket.socket]:
    """Bind a socket for each address that a host has, all to the same port; raises OSError."""
    with ExitStack() as stack:
        if address.startswith(UNIX):
            path = address.removeprefix(UNIX)
            path = "/" + path.lstrip("/") if path.startswith("//") else path
            _remove_left_socket(Path(path))
            sockets = [stack.enter_context(socket.socket(socket.AF_UNIX))]
            sockets[0].bind(path)
        else:
            host, _, port = address.rpartition(":")
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = []
            for family, kind, protocol, _, (name, first_port, *more) in dict.fromkeys(found):
                # With the protocol, for else asyncio does not know that it is TCP, and holds back small writes.
                each = stack.enter_context(socket.socket(family, kind, protocol))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _watch_clients(each)
                if is_shared:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, name != "::")
                each.bind((name, sockets[0].getsockname()[1] if sockets else first_port, *more))
                sockets.append(each)
        stack.pop_all()
    return sockets


def _watch_clients(listener: socket.socket) -> None:
    """Have TCP end the connections of clients that vanish without a word, and with them the calls that they hold."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # Linux hands all of this on to what is accepted
    for name, value in _TCP_OPTIONS.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _remove_left_socket(path: Path) -> None:
    """Remove the socket of a server that has ended without doing so; raises OSError where one still listens."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # with a full backlog it would wait
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, "another server listens there")

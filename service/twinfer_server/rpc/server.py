"""The gRPC servers, for callers, for operators and for probes: listeners, options and services, put together."""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from twinfer.v1 import ensemble_admin_service_pb2, ensemble_service_pb2

from ..auth_file import AuthFile
from ..engine import Engine
from ..settings import ServerSettings
from .admin_service import ADMIN_SERVICE, EnsembleAdminService
from .health import Health
from .infer_service import SERVICE, EnsembleService
from .interceptors import CallInterceptor
from .observing import Observers, ObservingInterceptor
from .oip import grpc_service_pb2
from .oip.service import INFERENCE_SERVICE, InferenceService
from .security import SecurityInterceptor
from .tls import Certificates

OPTIONS = (
    # A second server on the port is refused. By default both would share it, and each get a part of the connections.
    ("grpc.so_reuseport", 0),
    # What is answered is as large as it is; what comes is limited by `max_message_bytes`.
    ("grpc.max_send_message_length", -1),
    # Metadata of a call, in bytes: beyond the first some calls are refused, beyond the second all.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    # It holds for a connection from when its client has acknowledged it, for which there is no more time than this; until then
    # 16 MiB are kept.
    ("grpc.http2.settings_timeout", 20_000),
    # Calls at once on one connection; its client queues the rest. More than `max_concurrent_calls` by default, so that calls
    # that are too many are told so, and health still has room.
    ("grpc.max_concurrent_streams", 1024),
    # Windows as small as they begin: they would grow with the bandwidth, and so would what calls that are refused hold in memory.
    # A message that is being read gets the window that it needs all the same.
    ("grpc.http2.bdp_probe", 0),
    # A client that vanishes without a word holds its calls no longer than this.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ask for a sign of life this often; one that asks more often is sent away at its third time.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)
NOBODY = Observers()
SHARED_FILES = (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)

GOODBYE_SECONDS = 0.02
"""How long replies are held after the server has told its clients to go elsewhere: what they send then goes there."""
ON_THEIR_WAY_SECONDS = 1.0
"""How long calls that have begun when the server drains may take to have their requests admitted."""


class PortTaken(RuntimeError):
    """A listener cannot have its address."""


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """What the callers' listener and the operators' have in common, beside the settings."""

    certificates: Certificates | None = None
    """None: plain text."""
    auth_file: AuthFile | None = None
    """None: any caller is let in."""
    observers: Observers = NOBODY
    """Told of every call."""


class AdminServer:
    """The operators' service on its listener, if there is to be one."""

    def __init__(self, settings: ServerSettings, pool: Executor, options: ListenerOptions) -> None:
        """Put it together; `pool` parses large messages. Call it on the event loop."""
        self._service = EnsembleAdminService(pool, settings)
        self._address, self._certificates = settings.admin_listen, options.certificates
        self._health = Health((ADMIN_SERVICE,))
        self._server: grpc.aio.Server | None = None
        self._security = SecurityInterceptor(options.auth_file) if options.auth_file else None
        if self._address:
            files = (ensemble_admin_service_pb2.DESCRIPTOR, *SHARED_FILES)
            interceptors = self._security, CallInterceptor(settings.max_concurrent_calls)
            handlers = (self._service.handlers(),)
            self._server = _make_server(settings, interceptors, handlers, self._health, files, options.observers)

    async def start(self) -> str:
        """Listen; return the address with the port that was found, "" where there is to be no listener. Raises PortTaken."""
        return "" if self._server is None else await _start(self._server, self._address, self._certificates)

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine; from now on the service serves, whatever becomes of the callers'."""
        self._service.open(engine)
        self._health.report(is_serving=True)

    def end_revoked(self) -> None:
        """End the RPC streams of callers that are let in no more."""
        if self._security is not None:
            self._security.end_revoked()

    def end(self) -> None:
        """Report NOT_SERVING for good and end watches."""
        self._health.end()

    async def stop(self, grace_seconds: float) -> None:
        """Close the listener, and cancel what is still open after the grace."""
        if self._server is not None:
            await self._server.stop(grace_seconds)


class RpcServer:
    """The callers' services on their listener."""

    def __init__(self, settings: ServerSettings, pool: Executor, options: ListenerOptions) -> None:
        """Put the services together; `pool` parses large messages. Call it on the event loop."""
        self.health = Health((SERVICE, INFERENCE_SERVICE))
        self._ensemble_service = EnsembleService(pool, settings)
        self._inference_service = InferenceService(pool, settings)
        self._address, self._certificates = settings.listen, options.certificates
        on_failure = self._ensemble_service.note_failure
        self._security = SecurityInterceptor(options.auth_file, on_failure) if options.auth_file else None
        self._calls = CallInterceptor(settings.max_concurrent_calls, on_failure)
        handlers = self._ensemble_service.handlers(), self._inference_service.handlers()
        files = (ensemble_service_pb2.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR, *SHARED_FILES)
        interceptors = self._security, self._calls
        self._server = _make_server(settings, interceptors, handlers, self.health, files, options.observers)
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; return the address with the port that was found. Raises PortTaken."""
        return await _start(self._server, self._address, self._certificates)

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        self._ensemble_service.open(engine)
        self._inference_service.open(engine)

    def report(self, is_serving: bool, members: Mapping[str, bool]) -> None:
        """Set the health of the callers' services, and of each member by name."""
        self.health.report(is_serving, {f"{SERVICE}/{name}": is_on for name, is_on in members.items()})
        self._inference_service.report(is_serving, members)

    def end_revoked(self) -> None:
        """End the RPC streams of callers that are let in no more."""
        if self._security is not None:
            self._security.end_revoked()

    async def drain(self, grace_seconds: float) -> None:
        """Report NOT_SERVING for good, send clients elsewhere, end watches now, and RPC streams when their requests are answered.

        Calls that came before clients were told are served; after the grace they are cancelled.
        """
        self.health.end()
        await self._calls.settle()
        self._stopping = asyncio.create_task(self._server.stop(grace_seconds))  # listens no more, and tells clients, at once
        await asyncio.sleep(GOODBYE_SECONDS)
        self._calls.reply()
        await asyncio.gather(self._wait_for_calls(), self._ensemble_service.drain(), self._inference_service.drain())

    async def stop(self, grace_seconds: float) -> None:
        """Close the listener, and cancel what is still open after the grace."""
        await self._server.stop(grace_seconds)

    async def _wait_for_calls(self) -> None:
        until = asyncio.get_running_loop().time() + ON_THEIR_WAY_SECONDS
        while self._calls.calls and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)


class HealthServer:
    """The health of the callers' services on a listener of its own, if there is to be one; always in the clear, for probes."""

    def __init__(self, settings: ServerSettings, health: Health) -> None:
        """Put it together. Call it on the event loop."""
        self._address = settings.health_listen
        self._server = grpc.aio.server(options=OPTIONS)
        health.add_to(self._server)

    async def start(self) -> str:
        """Listen; return the address with the port that was found, "" where there is to be no listener. Raises PortTaken."""
        return await _start(self._server, self._address, None) if self._address else ""

    async def stop(self) -> None:
        """Close the listener, and cancel what is still open."""
        await self._server.stop(0)


def _make_server(
    settings: ServerSettings,
    interceptors: Sequence[grpc.aio.ServerInterceptor | None],
    handlers: Sequence[grpc.GenericRpcHandler],
    health: Health,
    files: Sequence[FileDescriptor],
    observers: Observers,
) -> grpc.aio.Server:
    """Make a server of some services, health and reflection, which describes the services in `files` and nothing else."""
    options = (*OPTIONS, ("grpc.max_receive_message_length", settings.max_message_bytes))
    # Where calls are observed, it is from the outside: those that other interceptors refuse count, too.
    observing = None if observers == NOBODY else ObservingInterceptor(observers, files)
    server = grpc.aio.server(interceptors=tuple(filter(None, (observing, *interceptors))), options=options)
    server.add_generic_rpc_handlers(tuple(handlers))
    health.add_to(server)
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    reflection.enable_server_reflection(names, server, _make_pool(files))
    return server


def _make_pool(files: Sequence[FileDescriptor]) -> DescriptorPool:
    """Make a pool of files and what they import: not all of them are in the one that the process has."""
    pool, added = DescriptorPool(), set()

    def add(file: FileDescriptor) -> None:
        if file.name not in added:
            added.add(file.name)
            for imported in file.dependencies:
                add(imported)
            pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    return pool


async def _start(server: grpc.aio.Server, address: str, certificates: Certificates | None) -> str:
    """Listen on HOST:PORT or unix:PATH, in the clear without certificates; return the address with its port. Raises PortTaken."""
    if address.startswith("unix:") and _is_answered(address.removeprefix("unix:")):  # `grpc` would take it over
        raise PortTaken(f"cannot listen on {address}: another server does")
    try:
        port = server.add_secure_port(address, certificates.credentials()) if certificates else server.add_insecure_port(address)
    except RuntimeError:  # `grpc` keeps to itself what the system said
        raise PortTaken(f"cannot listen on {address}: another server does, or it is no address of this machine") from None
    await server.start()
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _is_answered(path: str) -> bool:
    """Return whether a server listens on a unix socket; what a server that has ended left behind does not count."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)  # with a full backlog it would wait
        try:
            client.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

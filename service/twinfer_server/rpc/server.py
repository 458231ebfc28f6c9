"""The gRPC server: listeners, limits and services, put together."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor

import grpc
from grpc_health.v1 import health_pb2

from twinfer.v1 import ensemble_admin_service_pb2, ensemble_service_pb2

from ..engine import Engine
from ..settings import ServerSettings
from .admin_service import ADMIN_SERVICE, EnsembleAdminService
from .ensemble_service import SERVICE, EnsembleService
from .health import Health
from .oip import grpc_service_pb2
from .oip.service import INFERENCE_SERVICE, InferenceService
from .reflection import add_reflection


class PortTaken(Exception):
    """The address cannot be listened on."""


class RpcServer:
    """Everything that listens: callers' services, and on a listener of its own the operators'."""

    def __init__(self, settings: ServerSettings, pool: Executor) -> None:
        """Put the services together; `pool` parses large messages. Call it on the event loop."""
        self.health = Health((SERVICE, INFERENCE_SERVICE))
        self.ensemble_service = EnsembleService(pool, settings.max_stream_rows, settings.batch_rows)
        self.inference_service = InferenceService(pool, settings)
        self.admin_service = EnsembleAdminService(pool)
        self._settings = settings
        self._server = _make_server(settings)
        self._server.add_generic_rpc_handlers((self.ensemble_service.handlers(), self.inference_service.handlers()))
        self.health.add_to(self._server)
        add_reflection(self._server, (ensemble_service_pb2.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR))
        self._admin_health = Health((ADMIN_SERVICE,))
        self._admin_server: grpc.aio.Server | None = None
        if settings.admin_listen:
            self._admin_server = _make_server(settings)
            self._admin_server.add_generic_rpc_handlers((self.admin_service.handlers(),))
            self._admin_health.add_to(self._admin_server)
            add_reflection(self._admin_server, (ensemble_admin_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR))

    async def start(self) -> tuple[str, str]:
        """Listen; give the callers' address and the operators' ("" if none) with the ports that were found. Raises PortTaken."""
        address = _listen(self._server, self._settings.listen)
        admin_address = _listen(self._admin_server, self._settings.admin_listen) if self._admin_server else ""
        await self._server.start()
        if self._admin_server:
            await self._admin_server.start()
        return address, admin_address

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        self.ensemble_service.engine = self.admin_service.engine = engine
        self.inference_service.open(engine)

    def report(self, is_serving: bool, members: Mapping[str, bool]) -> None:
        """Set the health of the callers' services, and of each member by name; the operators' service serves whatever that is."""
        self.health.report(is_serving, {f"{SERVICE}/{name}": is_on for name, is_on in members.items()})
        self.inference_service.report(is_serving, members)
        self._admin_health.report(is_serving=True)

    async def drain(self) -> None:
        """Report NOT_SERVING for good, refuse new calls, end watches at once and streams when their rows in hand are answered."""
        self.health.end()
        self._admin_health.end()
        await asyncio.gather(self.ensemble_service.drain(), self.inference_service.drain())

    async def stop(self, grace_seconds: float) -> None:
        """Close the listeners, and cancel what is still open after the grace."""
        servers = [self._server, self._admin_server] if self._admin_server else [self._server]
        await asyncio.gather(*(server.stop(grace_seconds) for server in servers))


def _make_server(settings: ServerSettings) -> grpc.aio.Server:
    return grpc.aio.server(
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent half of the traffic
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
            # Else windows grow to megabytes, and what a refused call sends lies in memory although nobody asked for it.
            ("grpc.http2.bdp_probe", 0),
        ),
    )


def _listen(server: grpc.aio.Server, address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        found = server.add_insecure_port(address)
    except RuntimeError:  # its text says no more; gRPC's own log line has the system's reason
        found = 0
    if not found:
        raise PortTaken(f"cannot listen on {address}: another server has the port, or the address is not this machine's")
    return f"{host}:{found if port == '0' else port}"

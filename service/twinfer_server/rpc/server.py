"""The gRPC server: listeners, limits and services, put together."""

from concurrent.futures import Executor

import grpc

from twinfer.v1 import ensemble_admin_service_pb2

from ..settings import ServerSettings
from . import health
from .ensemble_service import SERVICE, EnsembleService
from .health import Health
from .reflection import add_reflection

ADMIN_SERVICE = ensemble_admin_service_pb2.DESCRIPTOR.services_by_name["EnsembleAdminService"].full_name


class PortTaken(Exception):
    """The address cannot be listened on."""


class RpcServer:
    """Everything that listens: callers' services, and on a listener of its own the operators'."""

    def __init__(self, settings: ServerSettings, pool: Executor) -> None:
        """Put the services together; `pool` parses large messages. Call it on the event loop."""
        self.health = Health((SERVICE,))
        self.ensemble_service = EnsembleService(pool, settings.max_stream_rows)
        self._settings = settings
        self._server = _make_server(settings)
        self._server.add_generic_rpc_handlers((self.ensemble_service.handlers(),))
        self.health.add_to(self._server)
        add_reflection(self._server, (SERVICE, health.SERVICE))
        self._admin_health = Health((ADMIN_SERVICE,))
        self._admin_server: grpc.aio.Server | None = None
        if settings.admin_listen:
            self._admin_server = _make_server(settings)
            self._admin_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ADMIN_SERVICE, {}),))
            self._admin_health.add_to(self._admin_server)
            add_reflection(self._admin_server, (ADMIN_SERVICE, health.SERVICE))

    async def start(self) -> tuple[str, str]:
        """Listen; give the callers' address and the operators' ("" if none) with the ports that were found. Raises PortTaken."""
        address = _listen(self._server, self._settings.listen)
        admin_address = _listen(self._admin_server, self._settings.admin_listen) if self._admin_server else ""
        await self._server.start()
        if self._admin_server:
            await self._admin_server.start()
        return address, admin_address

    async def report(self, is_serving: bool) -> None:
        """Set the health of everything."""
        await self.health.report(is_serving)
        await self._admin_health.report(is_serving)

    async def end_streams(self) -> None:
        """Report NOT_SERVING for good, and end what would otherwise stay open: streams when their rows are answered, watches."""
        self.ensemble_service.end_streams()
        await self.health.end()
        await self._admin_health.end()

    async def stop(self, grace_seconds: float) -> None:
        """Close the listeners, and cancel what is still open after the grace."""
        await self._server.stop(grace_seconds)
        if self._admin_server:
            await self._admin_server.stop(grace_seconds)


def _make_server(settings: ServerSettings) -> grpc.aio.Server:
    return grpc.aio.server(
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent half of the traffic
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ),
    )


def _listen(server: grpc.aio.Server, address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        found = server.add_insecure_port(address)
    except RuntimeError as error:
        raise PortTaken(f"cannot listen on {address}: {error}") from None
    if not found:
        raise PortTaken(f"cannot listen on {address}; is another server there?")
    return f"{host}:{found if port == '0' else port}"

"""The gRPC server: listeners, limits and services, put together."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from grpc_health.v1 import health_pb2

from twinfer.v1 import ensemble_admin_service_pb2, ensemble_service_pb2

from ..engine import Engine
from ..errors import Overloaded, TwinferError
from ..http2 import Limits, Server, Status
from ..settings import ServerSettings
from .admin_service import ADMIN_SERVICE, EnsembleAdminService
from .boundary import write_status
from .ensemble_service import SERVICE, EnsembleService
from .health import METHODS, Health
from .oip import grpc_service_pb2
from .oip.service import INFERENCE_SERVICE, InferenceService
from .reflection import add_reflection

ON_THEIR_WAY_SECONDS = 1.0
"""How long calls that have begun when the server drains may take to have their rows in hand."""
RETRY_SECONDS = 0.5
"""When a call that was one too many may come again: a place is free when another call ends, which nobody can foresee."""


class AdminServer:
    """The operators' service on its listener, if there is to be one."""

    def __init__(self, settings: ServerSettings, pool: Executor) -> None:
        """Put it together; `pool` parses large messages. Call it on the event loop."""
        self._service = EnsembleAdminService(pool)
        self._address = settings.admin_listen
        self._health = Health((ADMIN_SERVICE,))
        self._server: Server | None = None
        if self._address:
            self._server = _make_server(settings, lambda error: None)
            self._server.add_generic_rpc_handlers((self._service.handlers(),))
            self._health.add_to(self._server)
            add_reflection(self._server, (ensemble_admin_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR))

    async def start(self) -> str:
        """Listen; give the address with the port that was found, "" if nobody listens. Raises PortTaken."""
        if self._server is None:
            return ""
        return await self._server.start(self._address)

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine; from now on the service serves, whatever becomes of the callers'."""
        self._service.engine = engine
        self._health.report(is_serving=True)

    def end(self) -> None:
        """Report NOT_SERVING for good and end watches."""
        self._health.end()

    async def stop(self, grace_seconds: float) -> None:
        """Close the listener, and cancel what is still open after the grace."""
        if self._server is not None:
            await self._server.stop(grace_seconds)


class RpcServer:
    """The callers' services on their listener."""

    def __init__(self, settings: ServerSettings, pool: Executor, *, is_one_of_several: bool = False) -> None:
        """Put the services together; `pool` parses large messages. Call it on the event loop.

        If it `is_one_of_several`, other processes listen on the same port, and each gets some of the connections.
        """
        self.health = Health((SERVICE, INFERENCE_SERVICE))
        self.ensemble_service = EnsembleService(pool, settings.max_stream_requests, settings.batch_rows)
        self.inference_service = InferenceService(pool, settings)
        self._address = settings.listen
        self._is_one_of_several = is_one_of_several
        self._server = _make_server(settings, self.ensemble_service.note_failure)
        self._server.add_generic_rpc_handlers((self.ensemble_service.handlers(), self.inference_service.handlers()))
        self.health.add_to(self._server)
        add_reflection(self._server, (ensemble_service_pb2.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR))

    async def start(self) -> str:
        """Listen; give the address with the port that was found. Raises PortTaken."""
        return await self._server.start(self._address, is_shared=self._is_one_of_several)

    async def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        self.ensemble_service.engine = engine
        self.inference_service.open(engine)

    def report(self, is_serving: bool, members: Mapping[str, bool]) -> None:
        """Set the health of the callers' services, and of each member by name."""
        self.health.report(is_serving, {f"{SERVICE}/{name}": is_on for name, is_on in members.items()})
        self.inference_service.report(is_serving, members)

    async def drain(self) -> None:
        """Report NOT_SERVING for good, send clients elsewhere, end watches at once, and streams when their rows are answered.

        Calls that have come before clients were told are taken in hand as ever.
        """
        self.health.end()
        leaving = self._server.leave(ON_THEIR_WAY_SECONDS)
        await asyncio.gather(leaving, self.ensemble_service.drain(), self.inference_service.drain())

    async def stop(self, grace_seconds: float) -> None:
        """Close the listener, and cancel what is still open after the grace."""
        await self._server.stop(grace_seconds)


def _make_server(settings: ServerSettings, on_failure: Callable[[TwinferError], None]) -> Server:
    """Make a server with the limits of the settings; `on_failure` is told of calls that are too many."""

    def refuse(text: str) -> Status:
        error = Overloaded(text, retry_after_seconds=RETRY_SECONDS)
        on_failure(error)
        return write_status(error)

    limits = settings.max_message_bytes, settings.max_concurrent_calls, settings.max_streams_per_connection
    return Server(Limits(*limits, refuse=refuse, free=METHODS))

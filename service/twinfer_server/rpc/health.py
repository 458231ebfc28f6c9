"""Health: NOT_SERVING until the ensemble is warm, while a lane is stuck, and from the first moment of a drain."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio

from .boundary import Context

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LAST_WORD_SECONDS = 1.0


class Health(aio.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The health service of one server, for "" and for each of `services` alike."""

    def __init__(self, services: tuple[str, ...]) -> None:
        """Begin at NOT_SERVING, before anybody can ask: the package itself begins at SERVING."""
        super().__init__()
        self._server_status = dict.fromkeys(("", *services), NOT_SERVING)
        self._watches: set[asyncio.Task[None]] = set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def report(self, is_serving: bool) -> None:
        """Tell everybody who asks or watches."""
        for service in list(self._server_status):
            await self.set(service, SERVING if is_serving else NOT_SERVING)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Report each change until the caller goes away or `end` is called."""
        watch = asyncio.create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await watch
        except asyncio.CancelledError:
            if not watch.cancelled():
                raise  # the caller went away
        finally:
            watch.cancel()
            self._watches.discard(watch)

    async def end(self) -> None:
        """Report NOT_SERVING for good and end every watch: an open one would hold the server's stop for its whole grace."""
        await self.enter_graceful_shutdown()
        if self._watches:
            await asyncio.wait(set(self._watches), timeout=LAST_WORD_SECONDS)
        for watch in self._watches:
            watch.cancel()

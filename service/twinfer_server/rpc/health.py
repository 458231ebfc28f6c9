"""Health: NOT_SERVING until the ensemble is warm, while a stream is stuck, and from the first moment of a drain.

Each member has a service name of its own, `twinfer.v1.EnsembleService/MEMBER`, which is NOT_SERVING while the member is off.
"""

import asyncio
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..errors import quote
from .boundary import Context

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The health service of one server, for "" and for each of `services` alike.

    The package's own servicer begins at SERVING, has no List, never ends a watch, and lets one watcher who does not read hold up
    every change.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        """Begin at NOT_SERVING, before there are callers."""
        self._statuses = dict.fromkeys(("", *services), NOT_SERVING)
        self._own = tuple(self._statuses)
        self._changed = asyncio.Event()
        self._is_ended = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def report(self, is_serving: bool, details: Mapping[str, bool] | None = None) -> None:
        """Set what callers and watchers are told; `details` are further services with a status of their own."""
        wanted = dict.fromkeys(self._own, is_serving) | dict(details or {})
        for service in {**self._statuses, **wanted}:
            self._statuses[service] = SERVING if wanted.get(service) and not self._is_ended else NOT_SERVING
        self._wake_watches()

    @property
    def is_serving(self) -> bool:
        """Whether callers are told SERVING."""
        return bool(self._statuses[""] == SERVING)

    def end(self) -> None:
        """Report NOT_SERVING for good, and end every watch with that: an open one would hold up the server's stop."""
        self._is_ended = True
        self.report(is_serving=False)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Return the status of a service; NOT_FOUND for one that is not here."""
        if request.service not in self._statuses:
            text = f"service: found {quote(request.service)}; allowed: {', '.join(map(repr, self._statuses))}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return health_pb2.HealthCheckResponse(status=self._statuses[request.service])

    async def List(self, request: "health_pb2.HealthListRequest", context: Context) -> "health_pb2.HealthListResponse":
        """Return the status of every service."""
        statuses = {service: health_pb2.HealthCheckResponse(status=status) for service, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Report each change until the caller goes away or `end` is called."""
        told = None
        while True:
            changed = self._changed  # before the status is looked at: a change while it is written is not missed
            status = self._statuses.get(request.service, SERVICE_UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if self._is_ended:
                return
            await changed.wait()

    def _wake_watches(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

"""EnsembleAdminService: what operators ask of a running server, on a listener of their own."""

import asyncio
from concurrent.futures import Executor

import grpc

from twinfer.v1 import ensemble_admin_service_pb2 as pb

from ..engine import Engine
from ..errors import InvalidOption, Loading
from .boundary import Context, unary

ADMIN_SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleAdminService"].full_name
MAX_TIMELINE_SECONDS = 60.0


class EnsembleAdminService:
    """Translates between operators and an engine, which comes when it has loaded."""

    def __init__(self, pool: Executor) -> None:
        """`pool` parses large messages."""
        self.engine: Engine | None = None
        self._pool = pool

    def handlers(self) -> grpc.GenericRpcHandler:
        """Give the service's handlers, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            ADMIN_SERVICE, {"CaptureTimeline": unary(pb.CaptureTimelineRequest, self._capture_timeline, self._pool)}
        )

    async def _capture_timeline(
        self, message: pb.CaptureTimelineRequest, size_bytes: int, context: Context
    ) -> pb.CaptureTimelineResponse:  # fmt: skip
        if self.engine is None:
            raise Loading("the ensemble is loading")
        seconds = message.duration.seconds + message.duration.nanos / 1e9
        if not 0 < seconds <= MAX_TIMELINE_SECONDS:
            raise InvalidOption(f"duration: found {seconds} s; allowed: more than 0, at most {MAX_TIMELINE_SECONDS:g} s")
        trace = await self.engine.capture_timeline(seconds)
        return pb.CaptureTimelineResponse(trace_json=await asyncio.to_thread(trace.encode))

"""EnsembleAdminService: what operators ask of a running server, on a listener of their own."""

import asyncio
from concurrent.futures import Executor

import grpc

from twinfer.v1 import ensemble_admin_service_pb2 as pb
from twinfer.v1 import ensemble_pb2

from ..engine import Engine
from ..errors import InvalidOption, Loading
from ..executor import FusionChange
from ..settings import ServerSettings
from .boundary import Context, find_caller, unary
from .describe import describe

ADMIN_SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleAdminService"].full_name
MAX_TIMELINE_SECONDS = 60.0


class EnsembleAdminService:
    """Translates between operators and an engine, which comes when it has loaded."""

    def __init__(self, pool: Executor, settings: ServerSettings) -> None:
        """`pool` parses large messages."""
        self._engine: Engine | None = None
        self._pool = pool
        self._settings = settings

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the service's handlers, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            ADMIN_SERVICE,
            {
                "CaptureTimeline": unary(pb.CaptureTimelineRequest, self._capture_timeline, self._pool),
                "UpdateFusion": unary(pb.UpdateFusionRequest, self._update_fusion, self._pool),
                "SetMember": unary(pb.SetMemberRequest, self._set_member, self._pool),
                "RollbackFusion": unary(pb.RollbackFusionRequest, self._roll_back_fusion, self._pool),
            },
        )

    def open(self, engine: Engine) -> None:
        """Let calls reach the engine, now that it is ready."""
        self._engine = engine

    def _ready_engine(self) -> Engine:
        if self._engine is None:
            raise Loading("the ensemble is loading")
        return self._engine

    def _describe(self, engine: Engine) -> ensemble_pb2.Ensemble:
        return describe(engine.ensemble, self._settings, engine.breakers)

    async def _capture_timeline(
        self, message: pb.CaptureTimelineRequest, size_bytes: int, context: Context
    ) -> pb.CaptureTimelineResponse:  # fmt: skip
        engine = self._ready_engine()
        seconds = message.duration.seconds + message.duration.nanos / 1e9
        if not 0 < seconds <= MAX_TIMELINE_SECONDS:
            raise InvalidOption(f"duration: found {seconds} s; allowed: more than 0, at most {MAX_TIMELINE_SECONDS:g} s")
        trace = await engine.capture_trace(seconds)
        return pb.CaptureTimelineResponse(trace_json=await asyncio.to_thread(trace.encode))

    async def _update_fusion(self, message: pb.UpdateFusionRequest, size_bytes: int, context: Context) -> pb.UpdateFusionResponse:
        engine = self._ready_engine()
        change = FusionChange(
            message.expected_version, message.method, dict(message.weights), dict(message.temperatures), message.fitted
        )
        if change == FusionChange(message.expected_version):
            raise InvalidOption("found nothing to change; allowed: a method, weights, temperatures, or fitted")
        await engine.update_fusion(change, find_caller())
        return pb.UpdateFusionResponse(fusion=self._describe(engine).fusion)

    async def _roll_back_fusion(
        self, message: pb.RollbackFusionRequest, size_bytes: int, context: Context
    ) -> pb.RollbackFusionResponse:  # fmt: skip
        engine = self._ready_engine()
        await engine.roll_back_fusion(message.version, find_caller())
        return pb.RollbackFusionResponse(fusion=self._describe(engine).fusion)

    async def _set_member(self, message: pb.SetMemberRequest, size_bytes: int, context: Context) -> pb.SetMemberResponse:
        engine = self._ready_engine()
        closed, disabled = ensemble_pb2.BREAKER_STATE_CLOSED, ensemble_pb2.BREAKER_STATE_DISABLED
        if message.breaker_state not in (closed, disabled):
            found = message.breaker_state
            raise InvalidOption(f"breaker_state: found {found}; allowed: {closed} (CLOSED), {disabled} (DISABLED)")
        await engine.set_member(message.member, message.breaker_state == closed, find_caller())
        member = next(member for member in self._describe(engine).members if member.name == message.member)
        return pb.SetMemberResponse(member=member)

"""The methods that say what the server is and how it is set."""

from concurrent.futures import Executor
from importlib.metadata import version
from typing import Any

from ...errors import Unsupported
from ...settings import ServerSettings
from ..boundary import Context, unary
from . import grpc_service_pb2 as pb
from .memory import Handlers

EXTENSIONS = ("classification", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics")
LEVELS = ("debug", "info", "warning", "error")


def facts_handlers(settings: ServerSettings, pool: Executor) -> Handlers:
    """Give the handlers by name."""
    extensions = [*EXTENSIONS, *(["system_shared_memory"] if settings.shared_memory else [])]

    async def live(message: pb.ServerLiveRequest, size_bytes: int, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def metadata(message: pb.ServerMetadataRequest, size_bytes: int, context: Context) -> Any:
        return pb.ServerMetadataResponse(name="twinfer", version=version("twinfer"), extensions=extensions)

    async def trace(message: pb.TraceSettingRequest, size_bytes: int, context: Context) -> Any:
        _refuse_changes(message.settings, "twinfer timeline, which traces everything for a while")
        return pb.TraceSettingResponse(settings={"trace_level": pb.TraceSettingResponse.SettingValue(value=["OFF"])})

    async def log(message: pb.LogSettingsRequest, size_bytes: int, context: Context) -> Any:
        _refuse_changes(message.settings, "log_level and log_json when the server is started")
        response, level = pb.LogSettingsResponse(), LEVELS.index(settings.log_level)
        for name in LEVELS[1:]:
            response.settings[f"log_{name}"].bool_param = level <= LEVELS.index(name)
        response.settings["log_verbose_level"].uint32_param = int(level == 0)
        response.settings["log_format"].string_param = "json" if settings.log_json else "default"
        return response

    return {
        "ServerLive": unary(pb.ServerLiveRequest, live, pool),
        "ServerMetadata": unary(pb.ServerMetadataRequest, metadata, pool),
        "TraceSetting": unary(pb.TraceSettingRequest, trace, pool),
        "LogSettings": unary(pb.LogSettingsRequest, log, pool),
    }


def _refuse_changes(settings: Any, instead: str) -> None:
    if settings:
        raise Unsupported(f"settings: found {len(settings)}; allowed: none, nothing can be changed here; there is {instead}")

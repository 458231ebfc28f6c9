"""The methods that say what the server is and how it is set."""

from importlib.metadata import version
from typing import Any

from google.protobuf.message import Message

from ...errors import Unsupported
from ...settings import ServerSettings
from . import grpc_service_pb2 as pb
from .memory import Methods

EXTENSIONS = ("classification", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics")
LEVELS = ("debug", "info", "warning", "error")


def facts_methods(settings: ServerSettings) -> Methods:
    """Give the methods by name."""
    extensions = EXTENSIONS

    def trace(message: pb.TraceSettingRequest) -> Message:
        _refuse_changes(message.settings, "twinfer timeline, which traces everything for a while")
        return pb.TraceSettingResponse(settings={"trace_level": pb.TraceSettingResponse.SettingValue(value=["OFF"])})

    def log(message: pb.LogSettingsRequest) -> Message:
        _refuse_changes(message.settings, "log_level and log_json when the server is started")
        response, level = pb.LogSettingsResponse(), LEVELS.index(settings.log_level)
        for name in LEVELS[1:]:
            response.settings[f"log_{name}"].bool_param = level <= LEVELS.index(name)
        response.settings["log_verbose_level"].uint32_param = int(level == 0)
        response.settings["log_format"].string_param = "json" if settings.log_json else "default"
        return response

    return {
        "ServerLive": lambda message: pb.ServerLiveResponse(live=True),
        "ServerMetadata": lambda message: pb.ServerMetadataResponse(
            name="twinfer", version=version("twinfer"), extensions=extensions
        ),
        "TraceSetting": trace,
        "LogSettings": log,
    }


def _refuse_changes(settings: Any, instead: str) -> None:
    if settings:
        raise Unsupported(f"settings: found {len(settings)}; allowed: none, nothing can be changed here; there is {instead}")

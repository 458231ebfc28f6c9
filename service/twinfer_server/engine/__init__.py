"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .breaker import Switch
from .description import CascadeDescription, Description, FusionDescription, InputDescription, MemberDescription, describe
from .engine import LocalEngine
from .interface import Engine
from .record import FlightRecord, Recorder, Span

__all__ = [
    "CascadeDescription",
    "Description",
    "Engine",
    "FlightRecord",
    "FusionDescription",
    "InputDescription",
    "LocalEngine",
    "MemberDescription",
    "Recorder",
    "Span",
    "Switch",
    "describe",
]

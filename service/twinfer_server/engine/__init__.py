"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .breaker import Switch
from .description import CascadeDescription, Description, FusionDescription, InputDescription, MemberDescription, describe
from .engine import LocalEngine
from .interface import Engine, OperableEngine
from .reception import Reception
from .record import FlightRecord, Recorder, Span
from .watch import Watch

__all__ = [
    "CascadeDescription",
    "Description",
    "Engine",
    "FlightRecord",
    "FusionDescription",
    "InputDescription",
    "LocalEngine",
    "MemberDescription",
    "OperableEngine",
    "Reception",
    "Recorder",
    "Span",
    "Switch",
    "Watch",
    "describe",
]

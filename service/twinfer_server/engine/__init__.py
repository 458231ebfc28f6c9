"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .breaker import Switch
from .description import CascadeDescription, Description, FusionDescription, InputDescription, MemberDescription, describe
from .engine import Engine
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
    "MemberDescription",
    "Reception",
    "Recorder",
    "Span",
    "Switch",
    "Watch",
    "describe",
]

"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .breaker import Switch, SwitchState
from .engine import Engine
from .reception import Reception
from .record import FlightRecord, Recorder, Span
from .watch import Watch

__all__ = [
    "Engine",
    "FlightRecord",
    "Reception",
    "Recorder",
    "Span",
    "Switch",
    "SwitchState",
    "Watch",
]

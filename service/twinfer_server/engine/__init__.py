"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .breaker import Switch
from .description import Description, describe
from .engine import LocalEngine
from .interface import Engine
from .record import FlightRecord, Recorder, Span

__all__ = ["Description", "Engine", "FlightRecord", "LocalEngine", "Recorder", "Span", "Switch", "describe"]

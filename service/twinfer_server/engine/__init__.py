"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .description import Description, describe
from .engine import Engine, LocalEngine

__all__ = ["Description", "Engine", "LocalEngine", "describe"]

"""The engine: owns queue, batcher, flights and their life; knows no protobuf."""

from .admission import Admission
from .breaker import Switch
from .decoder import Decoder
from .description import CascadeDescription, Description, FusionDescription, InputDescription, MemberDescription, describe
from .engine import LocalEngine
from .interface import Engine, OperableEngine
from .margin import ReplyMargin
from .record import FlightRecord, Recorder, Span
from .watch import Watch

__all__ = [
    "Admission",
    "CascadeDescription",
    "Decoder",
    "Description",
    "Engine",
    "FlightRecord",
    "FusionDescription",
    "InputDescription",
    "LocalEngine",
    "MemberDescription",
    "OperableEngine",
    "Recorder",
    "ReplyMargin",
    "Span",
    "Switch",
    "Watch",
    "describe",
]

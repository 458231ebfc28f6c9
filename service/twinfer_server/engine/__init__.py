"""The engine: what to run when. Admits requests, forms batches, keeps deadlines, and opens breakers; knows no RPC."""

from .callers import Places
from .circuit_breaker import BreakerReading, BreakerState, CircuitBreakers
from .engine import Engine, Listener
from .trace import BatchRecord, MemberRecord, Span, TracedRequest

__all__ = [
    "BatchRecord", "BreakerReading", "BreakerState", "CircuitBreakers", "Engine", "Listener", "MemberRecord", "Places", "Span",
    "TracedRequest",
]  # fmt: skip

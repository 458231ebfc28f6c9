"""The engine: what to run when. Admits requests, forms batches, keeps deadlines, and opens breakers; knows no RPC."""

from .callers import Places
from .circuit_breaker import BreakerReading, BreakerState, CircuitBreakers
from .engine import Engine, Listener
from .trace import BatchRecord, Span

__all__ = ["BatchRecord", "BreakerReading", "BreakerState", "CircuitBreakers", "Engine", "Listener", "Places", "Span"]

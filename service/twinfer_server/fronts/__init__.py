"""Front processes: they accept calls, parse and decode; rows go through shared memory to the one process that owns the device."""

from .hub import Fronts

__all__ = ["Fronts"]

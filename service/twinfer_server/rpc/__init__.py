"""The RPC layer: gRPC's servers and the services on them; parses, translates and answers, and knows no torch."""

from .describe import describe
from .observing import Observers
from .server import AdminServer, PortTaken, RpcServer

__all__ = ["AdminServer", "Observers", "PortTaken", "RpcServer", "describe"]

"""The RPC layer: gRPC's servers and the services on them; parses, translates and answers, and knows no torch."""

from .describe import describe
from .observing import Observers
from .server import AdminServer, HealthServer, ListenerOptions, PortTaken, RpcServer
from .tls import Certificates, warn_of_plain_listeners

__all__ = [
    "AdminServer",
    "Certificates",
    "HealthServer",
    "ListenerOptions",
    "Observers",
    "PortTaken",
    "RpcServer",
    "describe",
    "warn_of_plain_listeners",
]

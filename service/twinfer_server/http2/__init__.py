"""gRPC over HTTP/2 on the event loop: connections, the calls on them, and the server that hands them to `grpc`'s own handlers.

It takes the place of `grpc.aio.server`, which wakes three threads for each call and hands calls over one by one; here what came in
one read is taken in one go, and what is answered in one turn of the loop leaves in one write.
"""

from .call import Call
from .heads import Status
from .server import Limits, PortTaken, Server
from .writer import CallEnded

__all__ = ["Call", "CallEnded", "Limits", "PortTaken", "Server", "Status"]

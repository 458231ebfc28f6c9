"""The RPC layer: listens, parses, translates and answers; knows no torch stream."""

from ..http2 import PortTaken
from .server import AdminServer, RpcServer

__all__ = ["AdminServer", "PortTaken", "RpcServer"]

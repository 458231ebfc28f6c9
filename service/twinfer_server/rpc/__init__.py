"""The RPC layer: listens, parses, translates and answers; knows no torch stream."""

from .server import AdminServer, PortTaken, RpcServer

__all__ = ["AdminServer", "PortTaken", "RpcServer"]

"""The RPC layer: listens, parses, translates and answers; knows no torch stream."""

from .server import PortTaken, RpcServer

__all__ = ["PortTaken", "RpcServer"]

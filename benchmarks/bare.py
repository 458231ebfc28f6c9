"""A bare server: grpc.aio on uvloop that takes bytes and answers with a few, and looks at neither. What it takes, gRPC takes.

It imports nothing but grpcio and uvloop, so that it runs in any environment.

    python benchmarks/bare.py 50051
"""

import sys
from typing import Any

import grpc
import uvloop

SERVICE = "twinfer.v1.EnsembleService"
METHOD = f"/{SERVICE}/Infer"
REPLY = bytes(300)
"""As long as twinfer's answers."""


async def _answer(data: bytes, context: Any) -> bytes:
    return REPLY


async def _serve(port: str) -> None:
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Infer": grpc.unary_unary_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))

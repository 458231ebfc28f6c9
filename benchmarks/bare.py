"""A bare gRPC server: it takes bytes and answers with a few, and looks at neither. What it takes is what gRPC in Python takes.

It listens with the options that twinfer has for large messages.

    python -m benchmarks.bare
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import uvloop

from benchmarks.harness import Server, pin
from benchmarks.load import METHOD
from twinfer_server.demo import read_address

REPLY = bytes(300)
"""As long as twinfer's answers."""


@contextmanager
def serving_bare(cores: frozenset[int]) -> Iterator[Server]:
    """Run the server on a free port, on `cores`; stop it afterwards."""
    command = [sys.executable, "-m", "benchmarks.bare"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: pin(cores)) as process:
        try:
            yield Server(read_address(process), process.pid)
        finally:
            process.kill()


async def _answer(data: bytes, context: Any) -> bytes:
    return REPLY


async def _serve() -> None:
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)))
    service, _, method = METHOD.strip("/").partition("/")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.unary_unary_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"listening on 127.0.0.1:{port}\nready\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve())

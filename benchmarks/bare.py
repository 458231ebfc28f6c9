"""A bare server: it takes bytes and answers with a few, and looks at neither. What it takes is what gRPC in Python takes.

It is grpc.aio's server with the options that suit large messages, or twinfer's own, without a service behind it.

    python -m benchmarks.bare grpc.aio --uvloop
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import grpc
import typer
import uvloop

from benchmarks.harness import Server, pin
from benchmarks.load import METHOD
from twinfer_server.demo import read_address
from twinfer_server.http2 import Limits
from twinfer_server.http2 import Server as OwnServer

SERVICE, _, UNARY = METHOD.strip("/").partition("/")
STREAM = "InferStream"
REPLY = bytes(300)
"""As long as twinfer's answers."""


class Kind(StrEnum):
    """Whose server."""

    AIO = "grpc.aio"
    OWN = "twinfer"


@contextmanager
def serving_bare(cores: frozenset[int], kind: Kind = Kind.AIO, loop: str = "uvloop") -> Iterator[Server]:
    """Run a server on a free port, on `cores`; stop it afterwards."""
    command = [sys.executable, "-m", "benchmarks.bare", kind, f"--{loop}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: pin(cores)) as process:
        try:
            yield Server(read_address(process), process.pid)
        finally:
            process.kill()


async def _answer(data: bytes, context: Any) -> bytes:
    return REPLY


async def _answer_each(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for _ in messages:
        yield REPLY


async def _serve(kind: Kind) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        UNARY: grpc.unary_unary_rpc_method_handler(_answer),
        STREAM: grpc.stream_stream_rpc_method_handler(_answer_each),
    }
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
    if kind is Kind.AIO:
        server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)))
        server.add_generic_rpc_handlers((handler,))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
    else:
        own = OwnServer(Limits(max_message_bytes=2**31 - 1, max_concurrent_calls=1000, max_streams_per_connection=1000))
        own.add_generic_rpc_handlers((handler,))
        address = await own.start("127.0.0.1:0")
    sys.stdout.write(f"listening on {address}\nready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main(kind: Kind, is_on_uvloop: Annotated[bool, typer.Option("--uvloop/--asyncio")] = True) -> None:
    """Serve until killed."""
    (uvloop if is_on_uvloop else asyncio).run(_serve(kind))


if __name__ == "__main__":
    typer.run(main)

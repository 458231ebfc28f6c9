"""A server of `twinfer_server.http2` with small methods of every kind, on an event loop of its own, for the tests of the wire."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import uvloop

from twinfer_server.http2 import Call, CallEnded, Limits, Server

LIMITS = Limits(max_message_bytes=16 * 2**20, max_concurrent_calls=200, max_streams_per_connection=100)
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

ECHO, COUNT, WRITE, JOIN, MIRROR = (f"/wire/{name}" for name in ("Echo", "Count", "Write", "Join", "Mirror"))
WAIT, FAIL, ABORT, TELL, LISTEN = (f"/wire/{name}" for name in ("Wait", "Fail", "Abort", "Tell", "Listen"))
SHOUT, PERSIST = "/wire/Shout", "/wire/Persist"
DETAILS = "an error: ü 100% 漢"
TRAILING = (("reason", "because"), ("reason", "so"), ("empty", ""), ("detail-bin", b"\x00\xff"), ("none-bin", b""))


class Methods(grpc.GenericRpcHandler):
    """The methods. What they live through, they note in `seen`; those that wait stand at `gate`. Event loop only."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._methods: dict[str, Any] = {
            ECHO: grpc.unary_unary_rpc_method_handler(self.echo),
            COUNT: grpc.unary_stream_rpc_method_handler(self.count),
            WRITE: grpc.unary_stream_rpc_method_handler(self.write),
            JOIN: grpc.stream_unary_rpc_method_handler(self.join),
            MIRROR: grpc.stream_stream_rpc_method_handler(self.mirror),
            WAIT: grpc.unary_unary_rpc_method_handler(self.wait),
            LISTEN: grpc.stream_unary_rpc_method_handler(self.listen),
            FAIL: grpc.unary_unary_rpc_method_handler(self.fail, request_deserializer=int),
            ABORT: grpc.unary_stream_rpc_method_handler(self.abort),
            SHOUT: grpc.unary_unary_rpc_method_handler(self.shout),
            PERSIST: grpc.stream_stream_rpc_method_handler(self.persist),
            TELL: grpc.unary_unary_rpc_method_handler(self.tell),
        }

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Give the handler of a method."""
        return self._methods.get(details.method)

    async def echo(self, request: bytes, call: Call) -> bytes:
        """Answer with the request."""
        return request

    async def count(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Give as many messages as the first number says, of as many bytes as the second, each with its own letter."""
        many, size = map(int, request.split())
        try:
            for number in range(many):
                yield letter(number) * size
        except (asyncio.CancelledError, GeneratorExit):
            self.seen.put("count is closed")
            raise

    async def write(self, request: bytes, call: Call) -> None:
        """Do what `count` does, with a coroutine that writes."""
        many, size = map(int, request.split())
        for number in range(many):
            await call.write(letter(number) * size)

    async def join(self, requests: AsyncIterator[bytes], call: Call) -> bytes:
        """Answer with all requests, one behind the other."""
        return b"".join([request async for request in requests])

    async def mirror(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Answer each request with itself."""
        async for request in requests:
            yield request

    async def wait(self, request: bytes, call: Call) -> bytes:
        """Answer with the request when the gate is open."""
        self.seen.put("wait begins")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.seen.put("wait is cancelled")
            raise
        return request

    async def listen(self, requests: AsyncIterator[bytes], call: Call) -> bytes:
        """Read nothing before the gate is open; then do what `join` does."""
        self.seen.put("listen begins")
        try:
            await self.gate.wait()
            return await self.join(requests, call)
        except asyncio.CancelledError:
            self.seen.put("listen is cancelled")
            raise

    async def fail(self, request: int, call: Call) -> bytes:
        """Do what no handler should."""
        raise RuntimeError("secret")

    async def abort(self, request: bytes, call: Call) -> None:
        """End with everything that a status can say, behind as many messages as asked for."""
        for _ in range(int(request)):
            await call.write(b"before")
        await call.abort(grpc.StatusCode.DATA_LOSS, DETAILS, TRAILING)

    async def shout(self, request: bytes, call: Call) -> bytes:
        """End with more than fits into one frame."""
        await call.abort(grpc.StatusCode.OUT_OF_RANGE, "x" * int(request))

    async def persist(self, requests: AsyncIterator[bytes], call: Call) -> None:
        """Go on although cancelled, and note what comes of it."""
        with suppress(asyncio.CancelledError):
            await self.gate.wait()
        for attempt in (call.read(), call.write(b"")):
            try:
                await attempt
            except CallEnded:
                self.seen.put("the call has ended")

    async def tell(self, request: bytes, call: Call) -> bytes:
        """Answer with what is known of the call: its metadata and the seconds that it has."""
        return repr((call.invocation_metadata(), call.time_remaining())).encode()


class RunningWire:
    """A server that listens on `address`."""

    def __init__(self, address: str, server: Server, methods: Methods, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._server = server
        self._methods = methods
        self._loop = loop

    @property
    def seen(self) -> "queue.SimpleQueue[str]":
        """What the methods have lived through."""
        return self._methods.seen

    def open_gate(self) -> None:
        """Let those go on that wait."""
        self.on_loop(self._methods.gate.set)

    def on_loop(self, callback: Callable[[], None]) -> None:
        """Have the server's loop do something."""
        self._loop.call_soon_threadsafe(callback)

    def stop(self, grace_seconds: float) -> "Future[None]":
        """Begin to stop; the result comes when the server has."""
        return asyncio.run_coroutine_threadsafe(self._server.stop(grace_seconds), self._loop)

    def count_connections(self) -> int:
        """Give how many clients are connected."""

        async def count() -> int:
            return len(self._server.connections)

        return asyncio.run_coroutine_threadsafe(count(), self._loop).result()


@contextmanager
def wired(loop: str = "asyncio", address: str = "127.0.0.1:0", limits: Limits = LIMITS) -> Iterator[RunningWire]:
    """Serve the methods, and stop at the end; what the loop complains of in between is an error."""
    started: Future[tuple[RunningWire, asyncio.Event]] = Future()

    async def life() -> None:
        server, methods, ending = Server(limits), Methods(), asyncio.Event()
        server.add_generic_rpc_handlers((methods,))
        found = await server.start(address)
        started.set_result((RunningWire(found, server, methods, asyncio.get_running_loop()), ending))
        await ending.wait()
        await server.stop(0)

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(life())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    complaints = Complaints()
    logging.getLogger("asyncio").addHandler(complaints)
    thread = threading.Thread(target=run, name="wire", daemon=True)
    thread.start()
    try:
        running, ending = started.result()
        try:
            yield running
        finally:
            running.on_loop(ending.set)
    finally:
        thread.join()
        logging.getLogger("asyncio").removeHandler(complaints)
    assert not complaints.texts


class Complaints(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(record.getMessage())


def letter(number: int) -> bytes:
    """Give the byte of which the message with that number is made."""
    return bytes([number % 251])

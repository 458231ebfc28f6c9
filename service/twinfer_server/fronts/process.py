"""A front's process as the device process sees it: started, spoken to, and seen to its end."""

import asyncio
import logging
import os
import pickle
import signal
import socket
from contextlib import ExitStack, suppress
from typing import Any

from ..engine import LocalEngine
from ..rpc import PortTaken
from ..settings import ServerSettings
from .cells import SharedMemory
from .desk import Desk
from .link import Frame, Link, Op
from .nursery import Nursery
from .orders import Begin, Listen, Open, Order

logger = logging.getLogger(__name__)


class FrontEnded(RuntimeError):
    """The process has ended where it should not have."""


class FrontProcess:
    """One front. Event loop only."""

    def __init__(self) -> None:
        """Begin with nothing; `start` makes the process."""
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when nothing more comes from it: its process has ended, or is ended for that."""
        self.pid = 0
        self.desk: Desk | None = None
        self._said: dict[Op, asyncio.Future[str]] = {op: loop.create_future() for op in (Op.LISTENING, Op.READY, Op.DRAINED)}
        self._link = Link(self._on_frame, self._on_lost)
        self._handle = -1
        """Of the process, whatever its number means meanwhile."""

    async def start(self, nursery: Nursery, settings: ServerSettings) -> None:
        """Start the process; raises FrontEnded, NurseryEnded, and OSError where there is not enough for it."""
        with ExitStack() as theirs:  # what the process has from then on
            try:
                ours, other = self._prepare(settings, theirs)
            except OSError:
                self._on_lost()  # there is no link yet that would tell
                raise
            await asyncio.get_running_loop().create_connection(lambda: self._link, sock=ours)
            try:
                self.pid = await nursery.fork((other.fileno(), self._rows.fd, self._answers.fd))
                self._handle = os.pidfd_open(self.pid)
            except ProcessLookupError:
                raise FrontEnded(f"the front process {self.pid} ended as soon as it had begun") from None
        self.tell(Begin(settings))

    def _prepare(self, settings: ServerSettings, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
        """Make the memory and the two ends of the link, of which `theirs` closes what is the process's own; raises OSError."""
        # Only what has been used takes memory; bfloat16, as the one kind of input, grows when it is read.
        size_bytes = settings.max_waiting_bytes + 2 * settings.max_message_bytes
        self._rows = SharedMemory(size_bytes)
        theirs.callback(self._rows.close_fd)
        self._answers = SharedMemory(size_bytes)
        theirs.callback(self._answers.close_fd)
        ours, other = socket.socketpair()
        theirs.enter_context(other)
        return ours, other

    async def listen(self) -> None:
        """Have it listen, and wait until it does; raises PortTaken and FrontEnded."""
        self.tell(Listen())
        if not await self._hear(Op.LISTENING):
            raise PortTaken(f"the front process {self.pid} cannot listen: another server has the port")

    async def open(self, engine: LocalEngine, order: Open) -> None:
        """Have it let callers in, and wait until they reach the engine; raises FrontEnded."""
        self.desk = Desk(engine, self._link, self._rows, self._answers)
        self.tell(order)
        await self._hear(Op.READY)

    async def drained(self) -> None:
        """Wait until it has nothing in hand, or has ended."""
        await self._wait_for(Op.DRAINED)

    def tell(self, order: Order) -> None:
        """Give an order."""
        self._link.send(Op.CONTROL, payload=pickle.dumps(order))

    def kill(self) -> None:
        """End it at once; nothing happens where it has ended."""
        if self._handle >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self._link.close()

    async def _hear(self, op: Op) -> str:
        said = await self._wait_for(op)
        if not said.done():
            raise FrontEnded(f"the front process {self.pid} ended before it was ready")
        return said.result()

    async def _wait_for(self, op: Op) -> "asyncio.Future[str]":
        said = self._said[op]
        either: set[asyncio.Future[Any]] = {said, self.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return said

    def _on_frame(self, frame: Frame) -> None:
        said = self._said.get(frame.op)
        if said is not None:
            if not said.done():
                said.set_result(frame.payload.decode())
        elif self.desk is not None:
            try:
                self.desk.on_frame(frame)
            except Exception:
                logger.exception("the front process %d said what cannot be; it is ended", self.pid)
                self.kill()

    def _on_lost(self) -> None:
        if self.desk is not None:
            self.desk.close()
        self.kill()  # a process without its link is good for nothing any more
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if not self.ended.done():
            self.ended.set_result(None)

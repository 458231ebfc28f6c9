"""A front's process as the device process sees it: started, spoken to, and seen to its end."""

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from typing import Any

from ..engine import LocalEngine
from ..rpc import PortTaken
from ..settings import ServerSettings
from .cells import SharedMemory
from .desk import Desk
from .link import Frame, Link, Op
from .orders import Listen, Open, Order

logger = logging.getLogger(__name__)

START = "from twinfer_server.fronts.front import main; main()"


class FrontEnded(Exception):
    """The process has ended where it should not have."""


class FrontProcess:
    """One front. Event loop only."""

    def __init__(self) -> None:
        """Begin with nothing; `start` makes the process."""
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit code, when the link to it has been closed as well; negative where a signal ended it."""
        self._exit_code: int | None = None
        self.desk: Desk | None = None
        self._said: dict[Op, asyncio.Future[str]] = {op: loop.create_future() for op in (Op.LISTENING, Op.READY, Op.DRAINED)}
        self._link = Link(self._on_frame, self._on_lost)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid if self._process else 0

    async def start(self, settings: ServerSettings) -> str:
        """Start the process and have it listen; gives its address. Raises PortTaken and FrontEnded."""
        ours, theirs = socket.socketpair()
        size_bytes = (
            settings.max_waiting_bytes + 2 * settings.max_message_bytes
        )  # what little lies in it is all the memory it takes
        self._rows, self._answers = SharedMemory(size_bytes), SharedMemory(size_bytes)
        fds = (theirs.fileno(), self._rows.fd, self._answers.fd)
        # A thread of torch's own for every core, in every process, would be too many.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", START, *map(str, fds)]
        self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment)  # noqa: ASYNC220
        theirs.close()
        self._rows.close_fd()
        self._answers.close_fd()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop,), name=f"front-{self.pid}", daemon=True).start()
        await loop.create_connection(lambda: self._link, sock=ours)
        self.tell(Listen(settings))
        address = await self._hear(Op.LISTENING)
        if not address:
            raise PortTaken(f"cannot listen on {settings.listen}: another server has the port")
        return address

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
        """End it at once."""
        if self._process is not None and not self.ended.done():
            self._process.kill()

    async def _hear(self, op: Op) -> str:
        said = await self._wait_for(op)
        if not said.done():
            raise FrontEnded(f"the front process {self.pid} ended with exit code {self.ended.result()} before it was ready")
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
        self.kill()  # it has closed the link, so it has ended, or is good for nothing any more
        self._note_end()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the process's end, on a thread that does nothing else."""
        assert self._process is not None
        code = self._process.wait()
        try:
            loop.call_soon_threadsafe(self._on_exit, code)
        except RuntimeError:  # the loop has ended before
            logger.debug("the front process %d ended after the device process's life", self._process.pid)

    def _on_exit(self, code: int) -> None:
        self._exit_code = code
        self._link.close()
        self._note_end()

    def _note_end(self) -> None:
        if self._exit_code is not None and not self._link.is_open and not self.ended.done():
            self.ended.set_result(self._exit_code)

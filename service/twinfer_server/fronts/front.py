"""A front's own life: it listens, decodes and answers as it is told to, and never outlives the process that owns the device."""

import asyncio
import logging
import os
import pickle
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ..inputs import InputLimits, make_intake
from ..process import configure_logging, end_process, run_loop
from ..rpc import PortTaken, RpcServer
from ..settings import ServerSettings
from .cells import SharedMemory
from .link import Frame, Link, Op
from .orders import Begin, Describe, Drain, Listen, Open, Order, Report, Stop
from .remote import RemoteEngine

logger = logging.getLogger(__name__)

LAST_SECONDS = 2.0
"""How long calls have to end with an error when the device process has gone; after twice as long the process ends anyway."""


class Front:
    """One front. Event loop only."""

    def __init__(self, rows: SharedMemory, answers: SharedMemory, parsers: ThreadPoolExecutor) -> None:
        """Begin without a listener."""
        self._rows = rows
        self._answers = answers
        self._parsers = parsers
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue()
        self._settings: ServerSettings | None = None
        self._server: RpcServer | None = None
        self._engine: RemoteEngine | None = None
        self._draining: asyncio.Task[None] | None = None
        self.link = Link(self._on_frame, self._on_lost)

    async def live(self) -> int:
        """Do as told until told to stop; gives the exit code."""
        while True:
            match await self._orders.get():
                case None:
                    return await self._end_alone()
                case Begin(settings):
                    configure_logging(settings.log_level, settings.log_json)
                    self._settings = settings
                    self._server = RpcServer(settings, self._parsers, is_one_of_several=True)
                case Listen():
                    await self._listen()
                case Open() as order:
                    await self._open(order)
                case Describe() as now if self._engine is not None:
                    self._engine.now = now
                case Report(is_serving, members) if self._server is not None:
                    self._server.report(is_serving, members)
                case Drain():
                    self._draining = asyncio.create_task(self._drain())
                case Stop(grace_seconds):
                    if self._server is not None:
                        await self._server.stop(grace_seconds)
                    return 0

    def _on_frame(self, frame: Frame) -> None:
        if frame.op is Op.CONTROL:
            self._orders.put_nowait(pickle.loads(frame.payload))  # from the process that has started this one
        elif self._engine is not None:
            self._engine.on_frame(frame)

    def _on_lost(self) -> None:
        if self._engine is not None:
            self._engine.lose()
        self._orders.put_nowait(None)

    async def _listen(self) -> None:
        assert self._server is not None
        try:
            address = await self._server.start()
        except PortTaken as error:
            logger.error("%s", error)  # the text says it all
            address = ""
        self.link.send(Op.LISTENING, payload=address.encode())

    async def _open(self, order: Open) -> None:
        assert self._settings is not None
        assert self._server is not None
        limits = InputLimits(self._settings.max_image_pixels, self._settings.max_text_bytes)
        intake = await asyncio.to_thread(make_intake, order.spec, order.folder, limits)
        self._engine = RemoteEngine(intake, self._settings, order.now, self.link, self._rows, self._answers)
        await self._server.open(self._engine)
        self.link.send(Op.READY)

    async def _drain(self) -> None:
        if self._server is not None:
            await self._server.drain()
        if self._engine is not None:
            await self._engine.drain()
        self.link.send(Op.DRAINED)

    async def _end_alone(self) -> int:
        """End without having been told: callers have their errors already, which only have to reach them."""
        logger.error("the process that owns the device has ended; this front ends, too")
        if self._server is not None:
            await self._server.stop(LAST_SECONDS)
        return 1


def main(link: int, rows: int, answers: int) -> None:
    """Live as a front: with the descriptors of the link and of the memory for rows and for answers. Does not return."""
    threading.Thread(target=_end_with_the_link, args=(os.dup(link),), daemon=True).start()
    try:
        run_loop(_live(link, rows, answers))
    except BaseException:
        logger.exception("a front ended by a defect")
    end_process(1)  # never back into the process that it was forked from


async def _live(link: int, rows: int, answers: int) -> None:
    memories = SharedMemory(0, rows), SharedMemory(0, answers)
    for memory in memories:
        memory.close_fd()
    with ThreadPoolExecutor(1, thread_name_prefix="parse") as parsers:
        front = Front(*memories, parsers)
        await asyncio.get_running_loop().create_connection(lambda: front.link, sock=socket.socket(fileno=link))
        end_process(await front.live())


def _end_with_the_link(link: int) -> None:
    """End the process some time after the other side of the link has, whatever the event loop is doing."""
    poll = select.poll()
    poll.register(link, 0)
    poll.poll()
    time.sleep(2 * LAST_SECONDS)
    os._exit(1)

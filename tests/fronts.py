"""A front and the device process in one: both ends of the link, over real shared memory, on one event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from twinfer_server.engine import LocalEngine
from twinfer_server.fronts.cells import SharedMemory
from twinfer_server.fronts.desk import Desk
from twinfer_server.fronts.hub import describe_now
from twinfer_server.fronts.link import Link
from twinfer_server.fronts.remote import RemoteEngine
from twinfer_server.inputs import InputLimits, make_intake
from twinfer_server.settings import ServerSettings

MEMORY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Passage:
    """The way from a front to the device: `front` and `desk` are the engines' two ends, and `links` theirs of the link."""

    front: RemoteEngine
    desk: Desk
    links: tuple[Link, Link]


@asynccontextmanager
async def behind_a_front(engine: LocalEngine, settings: ServerSettings, memory_bytes: int = MEMORY_BYTES) -> AsyncIterator[Passage]:
    """Put a front before an engine that has been started; both ends are closed in the end, whatever is left in hand."""
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Event] = [asyncio.Event(), asyncio.Event()]
    engines: list[RemoteEngine | Desk] = []

    def lose(place: int) -> None:
        ends[place].set()
        engine = engines[place]
        engine.lose() if isinstance(engine, RemoteEngine) else engine.close()

    links = tuple(Link(lambda frame, at=at: engines[at].on_frame(frame), lambda at=at: lose(at)) for at in (0, 1))  # type: ignore[misc]
    for link, end in zip(links, socket.socketpair(), strict=True):
        await loop.create_connection(lambda link=link: link, sock=end)  # type: ignore[misc]
    rows, answers = SharedMemory(memory_bytes), SharedMemory(memory_bytes)
    twins = SharedMemory(0, rows.fd), SharedMemory(0, answers.fd)
    for memory in twins:
        memory.close_fd()
    spec, folder = engine.ensemble.spec, engine.ensemble.folder
    intake = make_intake(spec, folder, InputLimits(settings.max_image_pixels, settings.max_text_bytes))
    engines.append(RemoteEngine(intake, settings, describe_now(engine), links[0], rows, answers))
    engines.append(Desk(engine, links[1], *twins))
    front, desk = engines
    assert isinstance(front, RemoteEngine)
    assert isinstance(desk, Desk)
    try:
        yield Passage(front, desk, (links[0], links[1]))
    finally:
        for link in links:
            link.close()
        await asyncio.gather(*(end.wait() for end in ends))
        front.close()

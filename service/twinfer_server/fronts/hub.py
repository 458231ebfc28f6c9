"""The fronts together, as the device process has them: it starts them, starts again those that crash, and ends them all."""

import asyncio
import logging
import socket
from collections.abc import Mapping
from pathlib import Path

from ..engine import LocalEngine
from ..rows import Policy
from ..rpc import PortTaken
from ..settings import ServerSettings
from .nursery import Nursery, NurseryEnded
from .orders import Describe, Drain, Open, Order, Report, Stop
from .process import FrontEnded, FrontProcess
from .wire import pack_error

logger = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
"""How long to wait after a front that could not even be started."""
END_SECONDS = 2.0
"""How long a front may take to end, beyond the grace of its calls."""


class Fronts:
    """What listens for callers where other processes do it: to the server's life the same as an `RpcServer`."""

    def __init__(self, folder: Path, settings: ServerSettings) -> None:
        """Start nothing yet. Call it on the event loop."""
        self._folder = folder
        self._settings = settings
        self._fronts: list[FrontProcess] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._engine: LocalEngine | None = None
        self._health = Report(is_serving=False, members={})
        self._nursery = Nursery()
        self._held: socket.socket | None = None

    async def start(self) -> str:
        """Have all fronts listen; give the address with the port that was found. Raises PortTaken, FrontEnded and NurseryEnded."""
        self._held, address = _reserve(self._settings.listen)
        # Once it is known that nobody else has the port, they share it.
        self._settings = self._settings.model_copy(update={"listen": address, "admin_listen": ""})
        self._fronts = [FrontProcess() for _ in range(self._settings.workers)]
        await asyncio.gather(*(front.start(self._nursery, self._settings) for front in self._fronts))
        await asyncio.gather(*(front.listen() for front in self._fronts))
        return address

    async def open(self, engine: LocalEngine) -> None:
        """Let calls reach the engine, now that it is ready, and keep the fronts alive from now on."""
        self._engine = engine
        engine.operations.on_change = lambda: self._tell(describe_now(engine))
        await asyncio.gather(*(self._open(front) for front in self._fronts))
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(len(self._fronts))]

    def report(self, is_serving: bool, members: Mapping[str, bool]) -> None:
        """Set the health of the callers' services, and of each member by name."""
        self._health = Report(is_serving, members)
        self._tell(self._health)

    async def drain(self) -> None:
        """Have all fronts refuse new calls, and return when they have answered what they have in hand."""
        self._stop_keeping()
        self._tell(Drain())
        await asyncio.gather(*(front.drained() for front in self._fronts))

    async def stop(self, grace_seconds: float) -> None:
        """End the fronts; calls that are still open after the grace are lost."""
        self._stop_keeping()
        self._tell(Stop(grace_seconds))
        if ends := [front.ended for front in self._fronts if front.pid]:
            await asyncio.wait(ends, timeout=grace_seconds + END_SECONDS)
            for front in self._fronts:
                front.kill()
            await asyncio.wait(ends)
        self._nursery.close()
        if self._held is not None:
            self._held.close()
            self._held = None

    def _tell(self, order: Order) -> None:
        for front in self._fronts:
            front.tell(order)

    async def _open(self, front: FrontProcess) -> None:
        assert self._engine is not None
        await front.open(self._engine, Open(self._folder, self._engine.ensemble.spec, describe_now(self._engine)))
        front.tell(self._health)

    async def _keep(self, place: int) -> None:
        """Start a front again whenever it has ended."""
        while True:
            ended = self._fronts[place].ended
            await asyncio.wait({ended})  # to wait for it directly would be to cancel it with this task
            logger.error("the front process %d has ended; its calls are lost, another one is started", self._fronts[place].pid)
            self._fronts[place] = front = FrontProcess()
            try:
                await front.start(self._nursery, self._settings)
                await self._open(front)
                await front.listen()
            except (FrontEnded, NurseryEnded, PortTaken, OSError) as error:
                logger.error("%s", error)  # the text says it all
                front.kill()
                await asyncio.sleep(RESTART_SECONDS)

    def _stop_keeping(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        self._keepers = []


def describe_now(engine: LocalEngine) -> Describe:
    """Say how the ensemble is now."""
    ensemble = engine.ensemble
    refusals = {policy: pack_error(error) for policy in Policy if (error := engine.refusal(policy)) is not None}
    return Describe(engine.description, frozenset(ensemble.crew.version.fusion.needs), ensemble.classes, refusals)


def _reserve(address: str) -> tuple[socket.socket, str]:
    """Hold a port that nobody else has, in a way that lets the fronts share it; raises PortTaken."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)  # fails where anybody listens, even one who would share
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(place)
    except OSError as error:
        raise PortTaken(f"cannot listen on {address}: {error.strerror}") from None
    return held, f"{host}:{held.getsockname()[1]}"

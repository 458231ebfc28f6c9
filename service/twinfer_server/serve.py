"""A server's life: listen, load, warm up, serve, drain, end."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .device import FreedMemory, open_device
from .engine import Engine
from .executor import MEGABYTE, Ensemble, check_budget, load_ensemble, measure_memory, read_times, warm_up, write_times
from .inputs import InputLimits
from .rpc import AdminServer, RpcServer
from .runtime import end_process, spare_collecting
from .settings import ServerSettings
from .spec import read_spec
from .trust import Trust

if TYPE_CHECKING:
    from .metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often health and memory are looked after."""
IDLE_SECONDS = 10.0
"""After so long with nothing in hand, memory that is free goes back to the kernel."""
LAST_YARDS_SECONDS = 1.0
"""How long the server's stop waits for calls that have no row in hand."""

OnProgress = Callable[[int, int], None]
"""Told how many of how many steps of the warm-up are done; on the thread that loads."""


class DeviceLost(RuntimeError):
    """The device can do nothing more in this process; whoever looks after the process should start it again."""


@dataclass(frozen=True, slots=True)
class Observer:
    """Who is told how far the server is: `on_listening` gets the callers' and the operators' address ("" if none)."""

    on_listening: Callable[[str, str], None]
    on_metrics: Callable[[str], None]
    on_progress: OnProgress
    on_ready: Callable[[], None]


def prepare_ensemble(folder: Path, settings: ServerSettings, on_progress: OnProgress) -> Ensemble:
    """Load, probe and warm the ensemble in `folder`, on the calling thread.

    Raises InvalidEnsemble, and RuntimeError where the device is not there.
    """
    spec = read_spec(folder)
    if spec.deterministic:
        # cuBLAS reads it when it is first used; without it, its answers depend on what else runs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # for the process: a model that has no such algorithm raises when it is probed
    device = open_device(settings.device, lanes=len(spec.members))
    device.prepare_thread()
    logger.info("computing on %s", device.fingerprint)
    trust = Trust.read(settings.trust_code, settings.trust_list)
    limits = InputLimits(settings.max_image_pixels, settings.max_text_bytes)
    cache = Path(settings.cache_dir).expanduser() if settings.cache_dir else None
    ensemble = load_ensemble(folder, device, trust, limits)
    warm_up(ensemble, read_times(cache, folder, ensemble) if cache else None, on_progress)
    if cache:
        write_times(cache, folder, ensemble)
    ensemble.memory = measure_memory(ensemble.members)
    check_budget(ensemble.memory, ensemble.flight_bytes, _find_budget(ensemble, settings))
    return ensemble


def _find_budget(ensemble: Ensemble, settings: ServerSettings) -> int | None:
    """Give the smaller of the folder's and the operator's budget, in bytes; None if neither set one."""
    wanted = [settings.memory_budget_mb or None, ensemble.spec.memory.budget_mb if ensemble.spec.memory else None]
    return min((round(budget * MEGABYTE) for budget in wanted if budget), default=None)


async def serve(folder: Path, settings: ServerSettings, observer: Observer, stopping: asyncio.Event) -> None:
    """Serve the ensemble in `folder` until `stopping` is set, then drain and return.

    Raises DeviceLost after draining, PortTaken, InvalidEnsemble, and RuntimeError where the device is not there.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="parse") as parsers, ExitStack() as stack:
        server = RpcServer(settings, parsers)
        admin = AdminServer(settings, parsers)
        try:
            observer.on_listening(await server.start(), await admin.start())
            metrics = _make_metrics() if settings.metrics_listen else None
            if metrics is not None:
                observer.on_metrics(stack.enter_context(metrics.listening(settings.metrics_listen)))
            ensemble = await _load(folder, settings, observer, stopping)
            if ensemble is None:
                return
            engine = Engine(ensemble, settings)
            engine.start()
            if metrics is not None:
                metrics.watch(engine)
            spare_collecting()  # it takes a moment, so before there are rows that would feel it
            await server.open(engine)
            admin.open(engine)
            server.report(is_serving=True, members=engine.operations.switches)
            observer.on_ready()
            await _look_after(server, engine, stopping)
            await _drain(server, admin, engine, settings.drain_seconds)
            if engine.loss:
                raise DeviceLost(f"the device is lost and only a new process gets it back: {engine.loss}")
        finally:
            await asyncio.gather(server.stop(grace_seconds=0), admin.stop(grace_seconds=0))


def _make_metrics() -> "Metrics":
    """Make what keeps the books, and brings an HTTP server."""
    from .metrics import Metrics

    return Metrics()


async def _load(
    folder: Path, settings: ServerSettings, observer: Observer, stopping: asyncio.Event
) -> Ensemble | None:  # fmt: skip
    """Load on a thread of its own; None if the server is told to stop meanwhile, and then the thread is left to itself."""
    # Of its own, because torch's settings belong to a thread and must not stick to one that others borrow later.
    loader = ThreadPoolExecutor(1, thread_name_prefix="load")
    loading = asyncio.get_running_loop().run_in_executor(loader, prepare_ensemble, folder, settings, observer.on_progress)
    told = asyncio.create_task(stopping.wait())
    waiting: set[asyncio.Future[Any]] = {loading, told}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    loader.shutdown(wait=False)
    return loading.result() if loading.done() else None


async def _look_after(server: RpcServer, engine: Engine, stopping: asyncio.Event) -> None:
    """Keep health true to the lanes, and memory small while nobody asks, until the server is told to stop."""
    told = (True, engine.operations.switches)
    freed_memory = FreedMemory()
    while not stopping.is_set() and not engine.loss:
        stuck, switches = engine.stuck_members(), engine.operations.switches
        now = (engine.can_answer and not stuck, switches)
        if now != told:
            if now[0] != told[0]:
                health = "SERVING" if now[0] else "NOT_SERVING"
                off = [name for name, is_on in switches.items() if not is_on]
                logger.warning("%s; stuck: %s; off: %s", health, ", ".join(stuck) or "nobody", ", ".join(off) or "nobody")
            told = now
            server.report(*now)
        if engine.idle_seconds > IDLE_SECONDS:
            await asyncio.to_thread(freed_memory.give_back)
        try:
            await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue


async def _drain(server: RpcServer, admin: AdminServer, engine: Engine, drain_seconds: float) -> None:
    """Refuse new work, answer what is in hand, end streams and watches; at the latest after `drain_seconds`."""
    logger.info("draining, for at most %g s", drain_seconds)
    until = time.monotonic() + drain_seconds
    admin.end()
    try:
        async with asyncio.timeout(drain_seconds):
            await server.drain()
            await engine.drain()
    except TimeoutError:
        logger.warning("drain_seconds are over and some rows are still in hand; they are given up")
    # What is open now has no row in hand: answers on their last yards, somebody's idle reflection stream.
    grace_seconds = max(0.0, min(LAST_YARDS_SECONDS, until - time.monotonic()))
    await asyncio.gather(server.stop(grace_seconds), admin.stop(grace_seconds))
    engine.close()
    logger.info("drained")


def stop_on_signals() -> asyncio.Event:
    """Give an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            logger.warning("signal %d again: ending now", number)
            end_process(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stopping

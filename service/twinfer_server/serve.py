"""A server's life: listen, load, warm up, serve, drain, end."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from .device import open_device
from .engine import LocalEngine
from .ensemble import Ensemble, load_ensemble, warm_up
from .inputs import InputLimits
from .rpc import RpcServer
from .settings import ServerSettings
from .spec import read_spec
from .trust import Trust

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""Told how many of how many steps of the warm-up are done."""


def prepare_ensemble(folder: Path, settings: ServerSettings, on_progress: Progress) -> Ensemble:
    """Load, probe and warm the ensemble in `folder`, on the calling thread; raises InvalidEnsemble, RuntimeError without the device."""
    device = open_device(settings.device, lanes=len(read_spec(folder).members))
    device.prepare_thread()
    trust = Trust.read(settings.trust_code, settings.trust_list)
    limits = InputLimits(settings.max_image_pixels, settings.max_text_bytes)
    ensemble = load_ensemble(folder, device, trust, limits)
    warm_up(ensemble, on_progress)
    return ensemble


async def serve(
    folder: Path, settings: ServerSettings, on_listening: Callable[[str, str], None], on_progress: Progress, on_ready: Callable[[], None]
) -> None:  # fmt: skip
    """Serve the ensemble in `folder` until SIGTERM or SIGINT, then drain and return; a second signal ends the process at once.

    `on_listening` gets the callers' and the operators' address. Raises PortTaken, InvalidEnsemble, RuntimeError without the device.
    """
    stopping = _stop_on_signals()
    with ThreadPoolExecutor(1, thread_name_prefix="parse") as parsers:
        server = RpcServer(settings, parsers)
        on_listening(*await server.start())
        try:
            await _serve_until(stopping, server, folder, settings, on_progress, on_ready)
        finally:
            await server.stop(grace_seconds=0)


async def _serve_until(
    stopping: asyncio.Event, server: RpcServer, folder: Path, settings: ServerSettings, on_progress: Progress, on_ready: Callable[[], None]
) -> None:  # fmt: skip
    # A thread of its own: torch's settings belong to the thread, and must not stick to one that others borrow later.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        ensemble = await _unless(stopping, loader, prepare_ensemble, folder, settings, on_progress)
    if ensemble is None:
        return
    engine = LocalEngine(ensemble, settings)
    engine.start()
    server.ensemble_service.engine = engine
    await server.report(is_serving=True)
    on_ready()
    await _watch_health(stopping, server, engine)
    await _drain(server, engine, settings.drain_seconds)


async def _unless(
    stopping: asyncio.Event, pool: Executor, work: Callable[..., Ensemble], *arguments: object
) -> Ensemble | None:  # fmt: skip
    """Do the work on `pool`; None if the server is told to stop meanwhile (the work is not waited for: the process ends)."""
    loading = asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait({loading, told}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        told.cancel()
        return loading.result()
    logger.info("told to stop while loading")
    end_process(0)
    return None


async def _watch_health(stopping: asyncio.Event, server: RpcServer, engine: LocalEngine) -> None:
    """Keep health true to the lanes until the server is told to stop."""
    was_serving = True
    while not stopping.is_set():
        stuck = engine.stuck_members()
        if bool(stuck) is was_serving:
            was_serving = not stuck
            logger.warning("members stuck: %s", ", ".join(stuck) or "none any more")
            await server.report(is_serving=was_serving)
        try:
            await asyncio.wait_for(stopping.wait(), HEALTH_SECONDS)
        except TimeoutError:
            continue


async def _drain(server: RpcServer, engine: LocalEngine, drain_seconds: float) -> None:
    """Refuse new work, answer what is in hand, end streams and watches; at the latest after `drain_seconds`."""
    logger.info("draining, for at most %g s", drain_seconds)
    until = time.monotonic() + drain_seconds
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + drain_seconds):
            drained = asyncio.create_task(engine.drain())  # from now on new calls are UNAVAILABLE
            await server.end_streams()
            await drained
    except TimeoutError:
        logger.warning("drain_seconds are over and some rows are still in hand; they are given up")
    await server.stop(grace_seconds=max(0.0, until - time.monotonic()))
    engine.close()
    logger.info("drained")


def _stop_on_signals() -> asyncio.Event:
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


def end_process(code: int) -> None:
    """End the process without waiting for threads: a stuck member's thread never ends by itself."""
    logging.shutdown()
    os._exit(code)

"""A server's life: listen, load, warm up, serve, drain, end."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .auth_file import AuthFile
from .device import open_device
from .engine import Engine
from .executor import MEGABYTE, Ensemble, check_budget, load_ensemble, warm_up
from .inputs import InputLimits
from .rpc import AdminServer, Certificates, HealthServer, ListenerOptions, Observers, RpcServer, warn_of_plain_listeners
from .runtime import freeze_garbage
from .settings import InvalidSettings, ServerSettings, traces_are_wanted
from .spec import read_spec
from .trust import Trust

if TYPE_CHECKING:
    from .metrics import Metrics
    from .tracing import Tracing

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often health is looked after, and whether `auth_file` has changed."""
LAST_YARDS_SECONDS = 1.0
"""How long the server's stop waits for calls that have no request in flight."""

OnProgress = Callable[[int, int], None]
"""Told how many of how many steps of the warm-up are done; on the thread that loads."""
Say = Callable[[str], None]
"""Told, a line at a time, what scripts wait for: the addresses, and that the server is ready."""


class DeviceLost(RuntimeError):
    """The device can do nothing more in this process; its supervisor should start it again."""


def prepare_ensemble(folder: Path, settings: ServerSettings, on_progress: OnProgress) -> Ensemble:
    """Load, check and warm the ensemble in `folder`, on the calling thread.

    Raises InvalidEnsemble, and RuntimeError where the device is not there.
    """
    spec = read_spec(folder)
    if spec.deterministic:
        # cuBLAS reads it when it is first used; without it, its answers depend on what else runs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # for the process: a model that has no such algorithm raises when it is checked
    device = open_device(settings.device, streams=len(spec.members))
    device.prepare_thread()
    logger.info("computing on %s", device.torch_device)
    trust = Trust.read(settings.trust_code, settings.trust_list)
    limits = InputLimits(settings.max_image_pixels, settings.max_text_bytes)
    ensemble = load_ensemble(folder, device, trust, limits)
    warm_up(ensemble, on_progress)
    check_budget(ensemble.memory, _find_budget(ensemble, settings))
    return ensemble


def _find_budget(ensemble: Ensemble, settings: ServerSettings) -> int | None:
    """Return the smaller of the folder's and the operator's budget, in bytes; None if neither is set."""
    wanted = [settings.memory_budget_mb or None, ensemble.spec.memory.budget_mb if ensemble.spec.memory else None]
    return min((round(budget * MEGABYTE) for budget in wanted if budget), default=None)


async def serve(folder: Path, settings: ServerSettings, stopping: asyncio.Event, say: Say, on_progress: OnProgress) -> None:
    """Serve the ensemble in `folder` until `stopping` is set, then drain and return.

    Raises DeviceLost after draining, PortTaken, InvalidSettings, InvalidEnsemble, and RuntimeError where the device is not there.
    """
    certificates = Certificates.read(settings)
    auth_file = AuthFile(settings.auth_file, settings) if settings.auth_file else None
    warn_of_plain_listeners(settings)
    with ThreadPoolExecutor(1, thread_name_prefix="parse") as parsers, ExitStack() as stack:
        metrics, tracing = _make_metrics(settings), _open_tracing()
        observers = Observers(metrics.on_call if metrics else None, tracing.begin_call if tracing else None)
        options = ListenerOptions(certificates, auth_file, observers)
        server, admin = RpcServer(settings, parsers, options), AdminServer(settings, parsers, options)
        probed = HealthServer(settings, server.health)
        try:
            say(f"listening on {await server.start()}")
            if admin_address := await admin.start():
                say(f"operators on {admin_address}")
            if health_address := await probed.start():
                say(f"health on {health_address}")
            if metrics is not None:
                metrics.watch_health(lambda: server.health.is_serving)
                say(f"metrics on {stack.enter_context(metrics.listening(settings.metrics_listen, certificates))}")
            ensemble = await _load(folder, settings, on_progress, stopping)
            if ensemble is None:
                return
            engine = _start_engine(ensemble, settings, auth_file, metrics, tracing)
            server.open(engine)
            admin.open(engine)
            server.report(is_serving=True, members=engine.breakers.is_on)
            say("ready")
            async with _watching(auth_file, (server, admin), engine):
                await _look_after(server, engine, stopping)
            await _drain(server, admin, engine, settings.drain_seconds)
            if engine.loss:
                raise DeviceLost(f"the device is lost and only a new process gets it back: {engine.loss}")
        finally:
            await asyncio.gather(server.stop(grace_seconds=0), admin.stop(grace_seconds=0), probed.stop())
            if tracing is not None:
                await asyncio.to_thread(tracing.close)


def _make_metrics(settings: ServerSettings) -> "Metrics | None":
    if not settings.metrics_listen:
        return None
    from .metrics import Metrics  # brings an HTTP server

    return Metrics()


def _open_tracing() -> "Tracing | None":
    """Set up traces where OpenTelemetry's variables ask for them; raises InvalidSettings where they cannot be had."""
    if not traces_are_wanted():
        return None
    try:
        from .tracing import start_tracing
    except ModuleNotFoundError as error:
        text = f"OTEL_* asks for traces, and {error.name} is not installed; pip install 'twinfer[otel]', or OTEL_SDK_DISABLED=true"
        raise InvalidSettings(text) from None
    return start_tracing()


def _start_engine(
    ensemble: Ensemble, settings: ServerSettings, auth_file: AuthFile | None, metrics: "Metrics | None", tracing: "Tracing | None"
) -> Engine:
    """Start the engine of the ensemble, with the callers' limits, and watched by what watches it."""
    engine = Engine(ensemble, settings)
    if auth_file is not None:
        engine.limit(auth_file.callers.limits)
    engine.start()
    if metrics is not None:
        metrics.watch(engine)
    if tracing is not None:
        engine.trace(tracing.on_batch)
    freeze_garbage()  # it takes a moment, so before there are requests that would feel it
    return engine


async def _load(folder: Path, settings: ServerSettings, on_progress: OnProgress, stopping: asyncio.Event) -> Ensemble | None:
    """Load on a thread of its own; None if the server is told to stop meanwhile, and then the thread is left to itself."""
    # Of its own, because torch's settings belong to a thread and must not stick to one that others borrow later.
    loader = ThreadPoolExecutor(1, thread_name_prefix="load")
    loading = asyncio.get_running_loop().run_in_executor(loader, prepare_ensemble, folder, settings, on_progress)
    told = asyncio.create_task(stopping.wait())
    waiting: set[asyncio.Future[Any]] = {loading, told}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    loader.shutdown(wait=False)
    return loading.result() if loading.done() else None


async def _look_after(server: RpcServer, engine: Engine, stopping: asyncio.Event) -> None:
    """Keep health true to the streams and the breakers, until the server is told to stop or the device is lost."""
    told = (True, engine.breakers.is_on)
    while not stopping.is_set() and not engine.loss:
        stuck, members = await engine.stuck_members(), engine.breakers.is_on
        now = (engine.can_answer() and not stuck, members)
        if now[0] != told[0]:
            off = [name for name, is_on in members.items() if not is_on]
            health = "SERVING" if now[0] else "NOT_SERVING"
            logger.warning("%s; stuck members: %s; members off: %s", health, ", ".join(stuck) or "none", ", ".join(off) or "none")
        if now != told:
            server.report(*now)
        told = now
        try:
            await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue


@asynccontextmanager
async def _watching(auth_file: AuthFile | None, servers: Sequence[RpcServer | AdminServer], engine: Engine) -> AsyncIterator[None]:
    """Look now and then whether the callers have changed: their limits, and the RPC streams that they have open."""

    async def watch(file: AuthFile) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await asyncio.to_thread(file.look):
                    engine.limit(file.callers.limits)
                    for server in servers:
                        server.end_revoked()
            except Exception:  # a defect must not end the one task that looks
                logger.exception("looking for other callers failed")

    task = None if auth_file is None else asyncio.create_task(watch(auth_file))
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def _drain(server: RpcServer, admin: AdminServer, engine: Engine, drain_seconds: float) -> None:
    """Refuse new work, answer the requests in flight, end RPC streams and watches; at the latest after `drain_seconds`."""
    logger.info("draining, for at most %g s", drain_seconds)
    until = time.monotonic() + drain_seconds
    admin.end()
    try:
        async with asyncio.timeout(drain_seconds):
            await server.drain(drain_seconds)
            await engine.drain()
    except TimeoutError:
        logger.warning("drain_seconds are over and some requests are still in flight; they are given up")
    # What is open now has no request in flight: replies on their last yards, an idle reflection stream.
    grace_seconds = max(0.0, min(LAST_YARDS_SECONDS, until - time.monotonic()))
    await asyncio.gather(server.stop(grace_seconds), admin.stop(grace_seconds))
    engine.close()
    logger.info("drained")
